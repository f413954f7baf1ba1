// What the runtime (libcuda.so.1) and a kernel compiled for the host know of each other.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
    unsigned x, y, z;
};

namespace stand_in {

struct BlockInfo {
    uint3 index, size, grid;
    void* dynamic_shared;
};

// Every CUDA thread runs on a stack of its own, aligned to its size, so that `threadIdx` is found from the stack
// pointer: this header lies near the top. Its place is staggered from stack to stack, else all headers would share one
// set of the cache (measured: four times slower).
struct ThreadHeader {
    uint3 index;
    unsigned lane;
    BlockInfo* block;
};
constexpr size_t STACK_BYTES = size_t(1) << 18;
__attribute__((always_inline)) constexpr size_t header_offset(uintptr_t stack) {
    return stack / STACK_BYTES % 256 * 64;
}

// What the lanes of a warp bring to a shuffle, a vote or a matrix product.
struct Exchange {
    uint64_t value[32];
    unsigned members;
};

enum AccessKind { READ = 0, WRITE = 1, ATOMIC = 2 };
enum BarrierKind { PLAIN, COUNT, AND, OR };

// `pc` is the place in the kernel, for messages.
struct RuntimeCalls {
    int (*barrier)(int kind, int predicate, void* pc, int line);
    // Waits for all lanes of `mask`. The last one calls `complete`, if given, before any goes on.
    const Exchange* (*exchange)(unsigned mask, uint64_t value, void (*complete)(const Exchange&), void* pc);
    unsigned (*active_mask)();
    void (*copy_async)(void* to, const void* from, unsigned bytes, void* pc);
    void (*copy_commit)();
    void (*copy_wait)(unsigned groups_left, void* pc);
    void (*access)(const void* at, size_t bytes, int kind, void* pc);  // check mode only
    void (*report)(const char* message, void* pc);
};

struct KernelEntry {
    const char* name;
    void (*call)(void** parameters);
    int max_threads;  // of __launch_bounds__, 0 without
    int parameters;
    const unsigned* bytes;
    const unsigned* alignment;
    const unsigned char* is_pointer;
};

}  // namespace stand_in
