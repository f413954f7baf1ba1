// The parts of the stand-in driver and what they offer each other: settings, reports, memory, executor.
#pragma once
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "interface.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace stand_in {

// ---- Settings: environment variables STAND_IN_ORDER etc., and `stand_in_set("order", …)` while running ------------

struct Settings {
    enum Order { FORWARD, REVERSE, RANDOM } order = FORWARD;  // of threads, of blocks, of the nodes of a graph
    uint64_t seed = 1;
    bool eager = false;  // run every operation when it is submitted (default: as late as the API allows)
    bool trace = false;  // print launches
    std::string nodes;   // file for the nodes of every graph that is made ready, the last one's in the end
    std::string only;    // kernels that are run, with commas between, on memory of zeros; empty: all of them
    bool quiet = false;  // keep reports for `stand_in_reports`, do not print them
    int devices = 1;
    int driver_version = 13000;
    int init = 0;  // what cuInit returns
    int capability = 90;
    size_t memory = size_t(4) << 30;  // of each device, in bytes
    enum Capture { GRAPH, CHAIN, NONE } capture = GRAPH;  // what can be captured
    long fail_launch = 0;             // n: the n-th launch from now on fails; 0: none does

    Settings();
    bool set(const std::string& name, const std::string& value);  // false: no such setting or value
};
extern Settings settings;

constexpr int MAX_DEVICES = 16;

// One lock for the whole API: a driver call, and whatever it runs, is alone.
extern std::recursive_mutex api_lock;

// Prints a fault and counts it.
void report(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- Device memory ------------------------------------------------------------------------------------------------

// Zeroed memory that costs nothing until it is touched.
template <class T>
class LazyArray {
    T* data = nullptr;
    size_t bytes = 0;
    static void* map(size_t bytes);
    static void unmap(void* data, size_t bytes);

  public:
    LazyArray() = default;
    explicit LazyArray(size_t count) : data((T*)map(count * sizeof(T))), bytes(count * sizeof(T)) {}
    LazyArray(LazyArray&& other) { *this = std::move(other); }
    LazyArray& operator=(LazyArray&& other) {
        std::swap(data, other.data);
        std::swap(bytes, other.bytes);
        return *this;
    }
    ~LazyArray() {
        if (data) unmap(data, bytes);
    }
    explicit operator bool() const { return data; }
    T& operator[](size_t i) { return data[i]; }
};
void* map_lazily(size_t bytes);
void unmap_lazily(void* data, size_t bytes);
template <class T>
void* LazyArray<T>::map(size_t bytes) {
    return map_lazily(bytes);
}
template <class T>
void LazyArray<T>::unmap(void* data, size_t bytes) {
    unmap_lazily(data, bytes);
}

// Who last touched a place: in which launch (for shared memory: which run of a block), between which barriers.
struct Toucher {
    uint32_t launch = 0, block = 0;
    uint16_t barriers = 0, warp_barriers = 0, thread = 0;
    uint8_t atomic = 0;
    uint8_t others = 0;  // also touched by others since: 1 of the same warp, 2 of elsewhere
};

// What the check mode knows of a piece of memory. Accesses of whole aligned words are kept per word, others per byte.
struct Shadow {
    LazyArray<uint8_t> written;  // per byte
    bool all_written = false;
    LazyArray<Toucher> word_writer, word_reader, byte_writer, byte_reader;
    size_t bytes = 0;

    explicit Shadow(size_t bytes) : written(bytes), bytes(bytes) {}
    void mark_written(size_t offset, size_t count);
    void mark_unwritten(size_t offset, size_t count);
    bool is_written(size_t offset, size_t count);
};

struct Allocation {
    uintptr_t start = 0;
    size_t bytes = 0;
    char* mapping = nullptr;  // with a guard page on either side
    size_t mapping_bytes = 0;
    int device = 0;
    bool pinned = false;
    std::unique_ptr<Shadow> shadow;
    bool contains(uintptr_t address) const { return address - start < (bytes ? bytes : 1); }
};

Allocation* find_allocation(uintptr_t address);
bool in_one_allocation(uintptr_t address, size_t bytes);
void* allocate(size_t bytes, int device, bool pinned);  // null: the limit is reached
bool release(uintptr_t start);                          // false: there is no such allocation
void add_module_variable(uintptr_t start, size_t bytes);
size_t memory_in_use(int device);
std::string describe_address(uintptr_t address);  // "12 bytes past the end of the 400-byte allocation at …"
void mark_written(uintptr_t start, size_t bytes);
void copy_written_marks(uintptr_t to, uintptr_t from, size_t bytes);

// ---- Modules and launches -----------------------------------------------------------------------------------------

struct Module {
    void* library;
    std::string path;
    const KernelEntry* kernels;
    bool checked;  // compiled in check mode
    uintptr_t start = 0, end = 0;
    size_t tls_id = 0, shared_bytes = 0;  // static __shared__ variables are thread-local ones of the library
    char* shared_memory() const;
};

struct Function {
    Module* module;
    const KernelEntry* kernel;
    size_t dynamic_shared_limit;
    int carveout;  // percent of the L1 cache that is shared memory; -1: the driver decides
};

struct Launch {
    const Function* function;
    void** parameters;
    uint3 grid, block;
    size_t dynamic_shared;
    uint32_t id;
    const char* parameter_bytes;
    size_t parameter_size;
};

extern const RuntimeCalls runtime_calls;

// Runs all blocks; false (after a report) if a thread did something wrong.
bool run(const Launch& launch);

}  // namespace stand_in
