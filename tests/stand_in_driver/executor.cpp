// Runs the blocks of a launch, one after the other. A CUDA thread is a fiber: it runs until it waits at a barrier or in
// a warp primitive, then the next one goes on. A thread that never waits leaves its stack to the next one without a
// switch.
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "executor.h"

namespace stand_in {

static constexpr size_t PAGE = 4096;
static thread_local Executor* executor;  // the one that runs on this host thread

// ---- Switching stacks ---------------------------------------------------------------------------------------------

extern "C" void stand_in_switch(void** save, void* to);
extern "C" void stand_in_resume();
asm(R"(
.text
.globl stand_in_switch
.hidden stand_in_switch
.type stand_in_switch,@function
stand_in_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
.globl stand_in_resume
.hidden stand_in_resume
stand_in_resume:
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size stand_in_switch,.-stand_in_switch
)");

static void fiber_main();

static void reset_fiber(Fiber* fiber) {
    void** top = (void**)((uintptr_t)fiber->header & ~uintptr_t(15));
    *--top = nullptr;
    *--top = (void*)fiber_main;
    for (int saved_register = 0; saved_register < 6; saved_register++) *--top = nullptr;
    fiber->stack_pointer = top;
}

static Fiber* free_fiber(Executor& e) {
    if (!e.free_fibers.empty()) {
        Fiber* fiber = e.free_fibers.back();
        e.free_fibers.pop_back();
        return fiber;
    }
    // Twice the size is mapped to find an aligned piece in it.
    char* map = (char*)mmap(nullptr, 2 * STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) abort();
    char* stack = (char*)(((uintptr_t)map + STACK_BYTES - 1) & ~(STACK_BYTES - 1));
    if (stack > map) munmap(map, stack - map);
    munmap(stack + STACK_BYTES, map + STACK_BYTES - stack);
    mprotect(stack, PAGE, PROT_NONE);
    char* header = stack + STACK_BYTES - sizeof(ThreadHeader) - header_offset((uintptr_t)stack);
    Fiber* fiber = new Fiber{stack, nullptr, (ThreadHeader*)header};
    reset_fiber(fiber);
    e.all_fibers.push_back(fiber);
    return fiber;
}

// ---- Reports from inside a kernel ---------------------------------------------------------------------------------

// File and line of a place in a kernel; not those of the functions of cuda_on_host.h that were inlined there.
static std::string source_line(void* pc) {
    Dl_info info;
    if (!pc || !dladdr(pc, &info) || !info.dli_fname) return "";
    char command[800], line[500] = "";
    snprintf(command, sizeof command, "addr2line -i -e '%s' %#zx 2>/dev/null", info.dli_fname,
             (uintptr_t)pc - 1 - (uintptr_t)info.dli_fbase);
    FILE* pipe = popen(command, "r");
    if (!pipe) return "";
    while (fgets(line, sizeof line, pipe)) {
        line[strcspn(line, " \n")] = 0;
        if (!strstr(line, "cuda_on_host.h")) break;
    }
    pclose(pipe);
    return strncmp(line, "./", 2) ? line : line + 2;
}

void complain(Executor& e, void* pc, const char* format, ...) {
    constexpr int MAX_REPORTS = 3;  // of one launch
    e.failed = true;
    if (++e.reports > MAX_REPORTS) return;
    char text[600];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    std::string line = source_line(pc);
    uint3 thread = e.fiber ? e.fiber->header->index : uint3{0, 0, 0};
    report("kernel %s, block (%u,%u,%u), thread (%u,%u,%u): %s%s%s", e.launch->function->kernel->name, e.info.index.x,
           e.info.index.y, e.info.index.z, thread.x, thread.y, thread.z, text, line.empty() ? "" : "\n    at ",
           line.c_str());
}

// Leaves the current thread for good; the scheduler then sees that the block has failed.
void abandon_thread(Executor& e) {
    void* forgotten;
    stand_in_switch(&forgotten, e.scheduler);
    abort();
}

// ---- Barriers and warp primitives ---------------------------------------------------------------------------------

static void shuffle_order(Executor& e) {
    if (settings.order == Settings::RANDOM) std::shuffle(e.order.begin(), e.order.end(), e.random);
}

static void release_barrier(Executor& e) {
    e.barriers++;
    shuffle_order(e);
    for (uint16_t t : e.order) {
        if (e.threads[t].state != WAITS_FOR_BLOCK) continue;
        e.threads[t].state = READY;
        e.threads[t].result = e.barrier_result;
        e.ready.push(t);
    }
    e.at_barrier = 0;
    e.barrier_line = 0;
}

static void complete_meeting(Executor& e, unsigned warp, Meeting& meeting) {
    Exchange& exchange = meeting.exchange[meeting.parity];
    unsigned members = exchange.members = meeting.arrived;
    if (meeting.complete) meeting.complete(exchange);
    e.warps[warp].barriers++;
    meeting.arrived = 0;
    meeting.parity ^= 1;  // a lane may come to the next exchange before another has read this one
    for (unsigned i = 0; i < 32; i++) {
        unsigned lane = settings.order == Settings::REVERSE ? 31 - i : i;
        if (!(members >> lane & 1)) continue;
        e.threads[warp * 32 + lane].state = READY;
        e.warp_ready.push((uint16_t)(warp * 32 + lane));
    }
}

static unsigned next_thread(Executor& e) { return e.warp_ready.empty() ? e.ready.pop() : e.warp_ready.pop(); }

// Makes the current fiber the one of thread `t`, which begins.
static void begin_thread(Executor& e, unsigned t) {
    *e.fiber->header = {e.thread_indices[t], t % 32, &e.info};
    e.current = t;
    e.threads[t].fiber = e.fiber;
}

// Picks who runs next. If the current thread has finished its fiber is free, else it is parked at a barrier.
static void run_next(Executor& e, bool finished) {
    Fiber* mine = e.fiber;
    if (e.warp_ready.empty() && e.ready.empty()) {
        if (finished) e.free_fibers.push_back(mine);
        stand_in_switch(&mine->stack_pointer, e.scheduler);
        e.fiber = mine;
        return;
    }
    unsigned t = next_thread(e);
    Thread& next = e.threads[t];
    if (next.state == NEW) {
        next.state = READY;
        if (!finished) e.fiber = free_fiber(e);
        begin_thread(e, t);
        if (!finished) stand_in_switch(&mine->stack_pointer, e.fiber->stack_pointer);
        return;
    }
    e.current = t;
    if (next.fiber == mine) return;
    e.fiber = next.fiber;
    if (finished) e.free_fibers.push_back(mine);
    stand_in_switch(&mine->stack_pointer, next.fiber->stack_pointer);
}

static void fiber_main() {
    Executor& e = *executor;
    for (;;) {
        e.launch->function->kernel->call(e.launch->parameters);
        unsigned t = e.current, warp = t / 32;
        e.threads[t].state = DONE;
        e.live--;
        e.warps[warp].live &= ~(1u << t % 32);
        // A thread that ends is no longer waited for.
        if (e.live && e.at_barrier == e.live) release_barrier(e);
        for (Meeting& m : e.warps[warp].meetings)
            if (m.arrived && (m.mask & e.warps[warp].live) == m.arrived) complete_meeting(e, warp, m);
        run_next(e, true);
    }
}

static int barrier(int kind, int predicate, void* pc, int line) {
    Executor& e = *executor;
    unsigned t = e.current;
    if (!e.at_barrier) {
        e.barrier_result = kind == AND;
        e.barrier_line = line;
    } else if (e.barrier_line != line) {
        complain(e, pc,
                 "__syncthreads() in divergent code: other threads of the block wait at another __syncthreads()");
        abandon_thread(e);
    }
    if (kind == COUNT) e.barrier_result += predicate != 0;
    if (kind == AND) e.barrier_result &= predicate != 0;
    if (kind == OR) e.barrier_result |= predicate != 0;
    e.threads[t].state = WAITS_FOR_BLOCK;
    e.threads[t].pc = pc;
    if (++e.at_barrier == e.live) release_barrier(e);
    run_next(e, false);
    return e.threads[t].result;
}

static const Exchange* exchange(unsigned mask, uint64_t value, void (*complete)(const Exchange&), void* pc) {
    Executor& e = *executor;
    unsigned t = e.current, lane = t % 32;
    Warp& warp = e.warps[t / 32];
    if (!(mask >> lane & 1)) {
        complain(e, pc, "warp primitive called by a lane that is not in its mask %#x", mask);
        abandon_thread(e);
    }
    auto found = std::find_if(warp.meetings.begin(), warp.meetings.end(), [&](Meeting& m) { return m.mask == mask; });
    if (found == warp.meetings.end()) {
        warp.meetings.emplace_back();
        found = std::prev(warp.meetings.end());
        found->mask = mask;
    }
    Meeting& meeting = *found;
    if (!meeting.arrived) {
        meeting.pc = pc;
        meeting.complete = complete;
    } else if (meeting.pc != pc) {
        complain(e, pc, "warp primitive in divergent code: other lanes of mask %#x wait at another one", mask);
        abandon_thread(e);
    }
    const Exchange& result = meeting.exchange[meeting.parity];
    meeting.exchange[meeting.parity].value[lane] = value;
    meeting.arrived |= 1u << lane;
    e.threads[t].state = WAITS_FOR_WARP;
    e.threads[t].pc = pc;
    if ((mask & warp.live) == meeting.arrived) complete_meeting(e, t / 32, meeting);
    run_next(e, false);
    return &result;
}

static unsigned active_mask() { return executor->warps[executor->current / 32].live; }

// ---- Asynchronous copies: done when they are waited for, the target poisoned until then ----------------------------

static void copy_async(void* to, const void* from, unsigned bytes, void* pc) {
    Executor& e = *executor;
    e.helper_pc = pc;
    if ((uintptr_t)to % bytes || (uintptr_t)from % bytes) {
        complain(e, pc, "misaligned asynchronous copy of %u bytes from %p to %p", bytes, from, to);
        abandon_thread(e);
    }
    if (e.launch->function->module->checked) {
        check_access(e, from, bytes, READ, pc);
        check_access(e, to, bytes, WRITE, pc);
        forget_written(e, to, bytes);
    }
    memset(to, 0xFF, bytes);
    volatile char touched = *(const char*)from;
    (void)touched;
    Thread& thread = e.threads[e.current];
    thread.copies.push_back({to, from, bytes, thread.committed_groups});
    e.helper_pc = nullptr;
}

static void copy_commit() { executor->threads[executor->current].committed_groups++; }

static void copy_wait(unsigned groups_left, void* pc) {
    Executor& e = *executor;
    Thread& thread = e.threads[e.current];
    e.helper_pc = pc;
    size_t done = 0;
    for (; done < thread.copies.size(); done++) {
        const PendingCopy& copy = thread.copies[done];
        if (copy.group + groups_left >= thread.committed_groups) break;
        if (e.launch->function->module->checked) check_access(e, copy.to, copy.bytes, WRITE, pc);
        memcpy(copy.to, copy.from, copy.bytes);
    }
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + done);
    e.helper_pc = nullptr;
}

static void access(const void* at, size_t bytes, int kind, void* pc) { check_access(*executor, at, bytes, kind, pc); }

static void report_and_abandon(const char* message, void* pc) {
    complain(*executor, pc, "%s", message);
    abandon_thread(*executor);
}

const RuntimeCalls runtime_calls{barrier,     exchange,  active_mask, copy_async,
                                 copy_commit, copy_wait, access,      report_and_abandon};

// ---- Faults inside a kernel ---------------------------------------------------------------------------------------

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
static struct sigaction previous_handlers[NSIG];

static void hand_on(int signal_number, siginfo_t* info, void* context) {
    struct sigaction& previous = previous_handlers[signal_number];
    if (previous.sa_flags & SA_SIGINFO) return previous.sa_sigaction(signal_number, info, context);
    if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(signal_number);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void on_fault(int signal_number, siginfo_t* info, void* context) {
    Executor* e = executor;
    if (!e || !e->in_kernel) return hand_on(signal_number, info, context);
    auto& registers = ((ucontext_t*)context)->uc_mcontext.gregs;
    uintptr_t address = (uintptr_t)info->si_addr;
    void* pc = e->helper_pc ? e->helper_pc : (void*)(registers[REG_RIP] + 1);
    e->helper_pc = nullptr;
    if (signal_number == SIGILL)
        complain(*e, pc, "undefined behaviour: misaligned access, array index out of bounds or signed overflow");
    else if (signal_number == SIGFPE)
        complain(*e, pc, "integer division by zero");
    else if (e->fiber && address - (uintptr_t)e->fiber->stack < PAGE)
        complain(*e, pc, "stack overflow of a thread (more than %zu KiB of local memory)", STACK_BYTES >> 10);
    else if (info->si_code == SI_KERNEL)
        complain(*e, pc, "misaligned vector access or non-canonical address");
    else if (e->dynamic_map && address - (uintptr_t)e->dynamic_map < e->dynamic_capacity + 2 * PAGE)
        complain(*e, pc, "out-of-bounds access to dynamic shared memory, %ld bytes past its start (size %zu)",
                 (long)(address - (uintptr_t)e->info.dynamic_shared), e->launch->dynamic_shared);
    else
        complain(*e, pc, "illegal access to %#zx, %s", address, describe_address(address).c_str());
    // Return into the scheduler instead of the kernel.
    registers[REG_RSP] = (greg_t)e->scheduler;
    registers[REG_RIP] = (greg_t)stand_in_resume;
}

// Puts this host thread in charge of an executor, with a signal stack of its own. A test harness makes a thread per
// test: executors are kept and shared among them.
class Lease {
    static std::vector<Executor*> unused;  // guarded by api_lock
    stack_t previous_stack;

  public:
    Lease() {
        if (unused.empty()) {
            executor = new Executor;
            executor->signal_stack.ss_size = size_t(1) << 16;
            executor->signal_stack.ss_sp = map_lazily(executor->signal_stack.ss_size);
        } else {
            executor = unused.back();
            unused.pop_back();
        }
        sigaltstack(&executor->signal_stack, &previous_stack);
        static std::once_flag once;
        std::call_once(once, [] {
            struct sigaction action{};
            action.sa_sigaction = on_fault;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK;
            sigemptyset(&action.sa_mask);
            for (int s : SIGNALS) sigaction(s, &action, &previous_handlers[s]);
        });
    }
    ~Lease() {
        sigaltstack(&previous_stack, nullptr);
        unused.push_back(executor);
        executor = nullptr;
    }
};
std::vector<Executor*> Lease::unused;

// ---- Blocks -------------------------------------------------------------------------------------------------------

extern "C" void* __tls_get_addr(size_t*);

char* Module::shared_memory() const {
    if (!shared_bytes) return nullptr;
    size_t index[2] = {tls_id, 0};
    return (char*)__tls_get_addr(index);
}

static void prepare_block(Executor& e) {
    static uint32_t serial;
    e.block_serial = ++serial;
    for (Thread& t : e.threads) {
        t.state = NEW;
        t.fiber = nullptr;
        t.committed_groups = 0;
        if (!t.copies.empty()) t.copies.clear();
    }
    for (size_t w = 0; w < e.warps.size(); w++) {
        size_t lanes = std::min<size_t>(32, e.threads.size() - w * 32);
        e.warps[w].live = lanes == 32 ? ~0u : (1u << lanes) - 1;
        e.warps[w].barriers = 0;
        for (Meeting& m : e.warps[w].meetings) m.arrived = 0;
    }
    e.live = (unsigned)e.threads.size();
    e.at_barrier = 0;
    e.barriers = 0;
    // Shared memory starts as NaN in each block.
    size_t dynamic_bytes = e.launch->dynamic_shared;
    if (dynamic_bytes) memset(e.info.dynamic_shared, 0xFF, dynamic_bytes);
    if (e.static_bytes) memset(e.static_shared, 0xFF, e.static_bytes);
    if (e.launch->function->module->checked) {
        e.dynamic_shadow->mark_unwritten(0, dynamic_bytes);
        e.static_shadow->mark_unwritten(0, e.static_bytes);
    }
    shuffle_order(e);
    e.ready = e.order;
    e.warp_ready = ThreadQueue();
}

static void report_deadlock(Executor& e) {
    unsigned in_barrier = 0, in_warp = 0;
    void *barrier_pc = nullptr, *warp_pc = nullptr;
    for (const Thread& t : e.threads) {
        if (t.state == WAITS_FOR_BLOCK) in_barrier++, barrier_pc = t.pc;
        if (t.state == WAITS_FOR_WARP) in_warp++, warp_pc = t.pc;
    }
    e.fiber = nullptr;
    complain(e, warp_pc,
             "deadlock: %u threads wait in __syncthreads() (%s), %u in a warp primitive that cannot complete",
             in_barrier, source_line(barrier_pc).c_str(), in_warp);
}

static void run_block(Executor& e) {
    prepare_block(e);
    while (!(e.warp_ready.empty() && e.ready.empty()) && !e.failed) {
        unsigned t = next_thread(e);
        Thread& thread = e.threads[t];
        if (thread.state == NEW) {
            e.fiber = free_fiber(e);
            begin_thread(e, t);
        } else {
            e.fiber = thread.fiber;
        }
        thread.state = READY;
        e.current = t;
        stand_in_switch(&e.scheduler, e.fiber->stack_pointer);
    }
    if (!e.failed && e.live) report_deadlock(e);
    if (!e.failed) return;
    e.free_fibers = e.all_fibers;
    for (Fiber* fiber : e.all_fibers) reset_fiber(fiber);
    for (Warp& warp : e.warps) warp.meetings.clear();
}

static void prepare_launch(Executor& e, const Launch& launch) {
    e.launch = &launch;
    e.failed = false;
    e.reports = 0;
    e.helper_pc = nullptr;
    e.info.size = launch.block;
    e.info.grid = launch.grid;
    unsigned count = launch.block.x * launch.block.y * launch.block.z;
    e.threads.resize(count);
    e.warps.resize((count + 31) / 32);
    e.order.resize(count);
    e.thread_indices.resize(count);
    e.random.seed(settings.seed * 7919 + launch.id);
    for (unsigned i = 0; i < count; i++) {
        e.order[i] = (uint16_t)(settings.order == Settings::REVERSE ? count - 1 - i : i);
        e.thread_indices[i] = {i % launch.block.x, i / launch.block.x % launch.block.y,
                               i / (launch.block.x * launch.block.y)};
    }
    // Dynamic shared memory ends at a guard page as well.
    e.info.dynamic_shared = nullptr;
    if (launch.dynamic_shared) {
        size_t body = (launch.dynamic_shared + PAGE - 1) / PAGE * PAGE;
        if (e.dynamic_capacity != body) {
            if (e.dynamic_map) munmap(e.dynamic_map, e.dynamic_capacity + 2 * PAGE);
            e.dynamic_capacity = body;
            e.dynamic_map = (char*)mmap(nullptr, body + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            mprotect(e.dynamic_map + PAGE, body, PROT_READ | PROT_WRITE);
        }
        uintptr_t start = (uintptr_t)(e.dynamic_map + PAGE + body - launch.dynamic_shared);
        e.info.dynamic_shared = (void*)(start & ~uintptr_t(15));
    }
    const Module& module = *launch.function->module;
    e.static_shared = module.shared_memory();
    e.static_bytes = module.shared_bytes;
    if (module.checked) {
        auto at_least = [](std::unique_ptr<Shadow>& shadow, size_t bytes) {
            if (!shadow || shadow->bytes < bytes) shadow = std::make_unique<Shadow>(bytes);
        };
        at_least(e.dynamic_shadow, launch.dynamic_shared + 16);
        at_least(e.static_shadow, e.static_bytes + 16);
        std::fill(std::begin(e.recent), std::end(e.recent), nullptr);
    }
}

bool run(const Launch& launch) {
    size_t count = (size_t)launch.grid.x * launch.grid.y * launch.grid.z;
    std::vector<unsigned> shuffled;
    if (settings.order == Settings::RANDOM) {
        for (size_t i = 0; i < count; i++) shuffled.push_back((unsigned)i);
        std::shuffle(shuffled.begin(), shuffled.end(), std::mt19937_64(settings.seed + launch.id));
    }
    Lease lease;
    Executor& e = *executor;
    prepare_launch(e, launch);
    e.in_kernel = true;
    for (size_t i = 0; i < count && !e.failed; i++) {
        size_t b = !shuffled.empty() ? shuffled[i] : settings.order == Settings::REVERSE ? count - 1 - i : i;
        e.block_number = (uint32_t)b;
        e.info.index = {(unsigned)(b % launch.grid.x), (unsigned)(b / launch.grid.x % launch.grid.y),
                        (unsigned)(b / launch.grid.x / launch.grid.y)};
        run_block(e);
    }
    e.in_kernel = false;
    return !e.failed;
}

}  // namespace stand_in
