// What the two files of driver calls share: result codes, contexts, and work given to a stream.
#pragma once
#include <functional>

#include "runtime.h"

namespace stand_in {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    STUB_LIBRARY = 34,
    DEVICE_UNAVAILABLE = 46,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_PTX = 218,
    FILE_NOT_FOUND = 301,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    LOSSY_QUERY = 402,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    SYSTEM_NOT_READY = 802,
    SYSTEM_DRIVER_MISMATCH = 803,
    COMPAT_NOT_SUPPORTED = 804,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905,
    UNKNOWN = 999,
};

struct Context {
    int device;
};
extern thread_local Context* current_context;

struct Stream;
Stream* find_stream(void* handle);  // null: no such stream; the handles 0, 1 and 2 are the default streams
bool is_capturing(const Stream* stream);
// As the driver counts the nodes of graphs.
enum NodeType { KERNEL = 0, COPY = 1, FILL = 2, HOST = 3, EMPTY = 5 };
// `what`: what it is, for a list of a graph's nodes.
Result submit(Stream* stream, std::function<Result()> work, NodeType type, std::string what = "");
// Smaller numbers are more urgent.
constexpr int LEAST_PRIORITY = 0, GREATEST_PRIORITY = -5;
Result synchronize(Stream* stream);
Result synchronize_all();
// Whether a call that capture forbids is made now; if so, spoils the capture as the driver does.
bool refused_by_capture();

}  // namespace stand_in

#define API EXPORTED stand_in::Result
#define LOCKED std::lock_guard<std::recursive_mutex> guard(stand_in::api_lock)
