// The state of a running block, shared by executor.cpp and checks.cpp.
#pragma once
#include <signal.h>

#include <list>
#include <random>

#include "runtime.h"

namespace stand_in {

struct Fiber {
    char* stack;
    void* stack_pointer;  // while it does not run
    ThreadHeader* header;
};

enum ThreadState : uint8_t { NEW, READY, WAITS_FOR_BLOCK, WAITS_FOR_WARP, DONE };

struct PendingCopy {
    void* to;
    const void* from;
    unsigned bytes, group;
};

struct Thread {
    ThreadState state;
    Fiber* fiber;
    int result;  // of the last barrier
    void* pc;    // where it waits
    unsigned committed_groups;
    std::vector<PendingCopy> copies;
};

// Lanes of one mask that come together.
struct Meeting {
    unsigned mask = 0, arrived = 0;
    int parity = 0;
    void* pc = nullptr;
    void (*complete)(const Exchange&) = nullptr;
    Exchange exchange[2];
};

struct Warp {
    unsigned live;  // lanes that have not ended
    uint16_t barriers;
    std::list<Meeting> meetings;  // one per mask in use; a list, because its elements stay where they are
};

// First in, first out.
class ThreadQueue {
    std::vector<uint16_t> threads;
    size_t next = 0;

  public:
    bool empty() const { return next == threads.size(); }
    void push(uint16_t thread) { threads.push_back(thread); }
    uint16_t pop() {
        uint16_t thread = threads[next++];
        if (empty()) {
            threads.clear();
            next = 0;
        }
        return thread;
    }
    ThreadQueue& operator=(const std::vector<uint16_t>& list) {
        threads.assign(list.begin(), list.end());
        next = 0;
        return *this;
    }
};

struct Executor {
    // The fibers, and the stack of the host thread that schedules them.
    void* scheduler = nullptr;
    std::vector<Fiber*> free_fibers, all_fibers;
    Fiber* fiber = nullptr;
    stack_t signal_stack{};

    // The launch.
    const Launch* launch = nullptr;
    std::vector<uint3> thread_indices;
    std::vector<uint16_t> order;
    std::mt19937_64 random;
    bool in_kernel = false, failed = false;
    int reports = 0;
    void* helper_pc = nullptr;  // the kernel's call while a function of the runtime touches its memory

    // The block.
    BlockInfo info;
    uint32_t block_number = 0, block_serial = 0;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    ThreadQueue ready;       // threads that begin, or that a block barrier has let go
    ThreadQueue warp_ready;  // lanes that a warp primitive has let go: first, while their stacks are in the cache
    unsigned current = 0, live = 0;
    unsigned at_barrier = 0;
    int barrier_result = 0;
    int barrier_line = 0;
    uint16_t barriers = 0;  // passed so far

    // Shared memory.
    char* dynamic_map = nullptr;
    size_t dynamic_capacity = 0;
    char* static_shared = nullptr;
    size_t static_bytes = 0;
    std::unique_ptr<Shadow> dynamic_shadow, static_shadow;

    // Allocations found last: none is added or freed during a launch.
    Allocation* recent[4] = {};
    unsigned next_recent = 0;
};

// Reports a fault of the current thread and makes the launch fail.
void complain(Executor& e, void* pc, const char* format, ...) __attribute__((format(printf, 3, 4)));
[[noreturn]] void abandon_thread(Executor& e);

// Check mode: looks at one access of the current thread.
void check_access(Executor& e, const void* at, size_t bytes, int kind, void* pc);
void forget_written(Executor& e, const void* at, size_t bytes);

}  // namespace stand_in
