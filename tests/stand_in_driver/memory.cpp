// Device memory: ordinary memory that starts out poisoned, ends at a guard page, and stays unreadable after it is
// freed.
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime.h"

namespace stand_in {

// ---- Settings -----------------------------------------------------------------------------------------------------

Settings settings;
std::recursive_mutex api_lock;

static const char* const SETTINGS[] = {"order",      "eager",          "trace",  "quiet",      "devices",
                                       "capability", "driver_version", "memory", "fail_launch", "capture", "init",
                                       "nodes",      "only"};

Settings::Settings() {
    for (const char* name : SETTINGS) {
        std::string variable = std::string("STAND_IN_") + name;
        for (char& c : variable) c = (char)toupper(c);
        const char* value = getenv(variable.c_str());
        if (value && !set(name, value))
            fprintf(stderr, "stand-in GPU: %s=%s is not understood\n", variable.c_str(), value);
    }
}

bool Settings::set(const std::string& name, const std::string& value) {
    if (name == "order") {  // forward, reverse, random or random:SEED
        if (value == "forward")
            order = FORWARD;
        else if (value == "reverse")
            order = REVERSE;
        else if (value.compare(0, 6, "random") == 0)
            order = RANDOM;
        else
            return false;
        size_t colon = value.find(':');
        seed = colon == std::string::npos ? 1 : strtoull(value.c_str() + colon + 1, nullptr, 10);
        return true;
    }
    if (name == "capture") {  // graph, chain or none
        capture = value == "graph" ? GRAPH : value == "chain" ? CHAIN : NONE;
        return value == "graph" || value == "chain" || value == "none";
    }
    if (name == "nodes" || name == "only") {
        (name == "nodes" ? nodes : only) = value;
        return true;
    }
    if (name == "capability") {  // as in 9.0
        int major, minor;
        if (sscanf(value.c_str(), "%d.%d", &major, &minor) != 2) return false;
        capability = 10 * major + minor;
        return true;
    }
    char* end;
    long number = strtol(value.c_str(), &end, 10);
    if (value.empty() || *end || number < 0) return false;
    if (name == "eager")
        eager = number;
    else if (name == "trace")
        trace = number;
    else if (name == "quiet")
        quiet = number;
    else if (name == "devices")
        devices = (int)std::min<long>(number, MAX_DEVICES);
    else if (name == "driver_version")
        driver_version = (int)number;
    else if (name == "memory")
        memory = (size_t)number;
    else if (name == "init")
        init = (int)number;
    else if (name == "fail_launch")
        fail_launch = number;
    else
        return false;
    return true;
}

EXPORTED int stand_in_set(const char* name, const char* value) {
    std::lock_guard<std::recursive_mutex> guard(api_lock);
    return settings.set(name, value);
}

// ---- Reports ------------------------------------------------------------------------------------------------------

static uint64_t error_count;
static std::string kept_reports;

void report(const char* format, ...) {
    char text[2000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    error_count++;
    if (!settings.quiet) fprintf(stderr, "stand-in GPU: %s\n", text);
    if (kept_reports.size() < (size_t(1) << 20)) kept_reports += std::string(text) + "\n";
}

// Faults since the start of the process.
EXPORTED uint64_t stand_in_errors() {
    std::lock_guard<std::recursive_mutex> guard(api_lock);
    return error_count;
}

// Moves the reports kept since the last call into `text`, cut to fit.
EXPORTED void stand_in_reports(char* text, size_t capacity) {
    std::lock_guard<std::recursive_mutex> guard(api_lock);
    snprintf(text, capacity, "%s", kept_reports.c_str());
    kept_reports.clear();
}

// ---- Shadows ------------------------------------------------------------------------------------------------------

static constexpr size_t PAGE = 4096;

static size_t round_up_to_page(size_t bytes) { return (std::max<size_t>(bytes, 1) + PAGE - 1) / PAGE * PAGE; }

static constexpr size_t SMALL = size_t(64) << 10;

void* map_lazily(size_t bytes) {
    if (bytes < SMALL) return calloc(1, std::max<size_t>(bytes, 1));
    void* data = mmap(nullptr, round_up_to_page(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data != MAP_FAILED) return data;
    fprintf(stderr, "stand-in GPU: no address space for %zu bytes\n", bytes);
    abort();
}

void unmap_lazily(void* data, size_t bytes) {
    if (bytes < SMALL)
        free(data);
    else
        munmap(data, round_up_to_page(bytes));
}

void Shadow::mark_written(size_t offset, size_t count) {
    if (!all_written && count) memset(&written[offset], 1, count);
}

void Shadow::mark_unwritten(size_t offset, size_t count) {
    if (!all_written && count) memset(&written[offset], 0, count);
}

bool Shadow::is_written(size_t offset, size_t count) {
    return all_written || count == 0 || !memchr(&written[offset], 0, count);
}

// ---- Allocations --------------------------------------------------------------------------------------------------

static constexpr unsigned char POISON = 0xFF;  // NaN as float and double, -1 as an integer
static constexpr unsigned char SLACK = 0xA5;   // between the end of the data and the guard page: at most 15 bytes
static constexpr size_t MAX_POISONED = size_t(256) << 20;
static constexpr size_t QUARANTINE = 20000;

struct Freed {
    uintptr_t start;
    size_t bytes;
    char* mapping;
    size_t mapping_bytes;
};

static std::map<uintptr_t, Allocation> allocations;  // by start
static std::map<uintptr_t, size_t> freed_bytes;      // ranges that are still reserved, by start
static std::deque<Freed> quarantine;
static size_t in_use[MAX_DEVICES];

size_t memory_in_use(int device) { return in_use[device]; }

Allocation* find_allocation(uintptr_t address) {
    auto next = allocations.upper_bound(address);
    if (next == allocations.begin()) return nullptr;
    Allocation& candidate = std::prev(next)->second;
    return candidate.contains(address) ? &candidate : nullptr;
}

bool in_one_allocation(uintptr_t address, size_t bytes) {
    if (bytes == 0) return true;
    Allocation* a = find_allocation(address);
    return a && bytes <= a->start + a->bytes - address;
}

std::string describe_address(uintptr_t address) {
    constexpr size_t NEAR = size_t(1) << 20;
    char text[200];
    auto next = allocations.upper_bound(address);
    const Allocation* before = next == allocations.begin() ? nullptr : &std::prev(next)->second;
    if (before && before->contains(address)) {
        snprintf(text, sizeof text, "offset %zu of the %zu-byte allocation at %#zx", address - before->start,
                 before->bytes, before->start);
        return text;
    }
    auto freed = freed_bytes.upper_bound(address);
    if (freed != freed_bytes.begin() && address - std::prev(freed)->first < std::prev(freed)->second) {
        snprintf(text, sizeof text, "inside a freed %zu-byte allocation (use after free)", std::prev(freed)->second);
        return text;
    }
    if (before && address - (before->start + before->bytes) < NEAR) {
        snprintf(text, sizeof text, "%zu bytes past the end of the %zu-byte allocation at %#zx",
                 address - (before->start + before->bytes), before->bytes, before->start);
        return text;
    }
    if (next != allocations.end() && next->second.start - address < NEAR) {
        snprintf(text, sizeof text, "%zu bytes before the %zu-byte allocation at %#zx", next->second.start - address,
                 next->second.bytes, next->second.start);
        return text;
    }
    return "not device memory";
}

void* allocate(size_t bytes, int device, bool pinned) {
    if (!pinned && (bytes > settings.memory || in_use[device] > settings.memory - bytes)) return nullptr;
    size_t wanted = std::max<size_t>(bytes, 1), body = round_up_to_page(wanted);
    Allocation a;
    a.bytes = bytes;
    a.device = device;
    a.pinned = pinned;
    a.mapping_bytes = body + 2 * PAGE;
    a.mapping = (char*)mmap(nullptr, a.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a.mapping == MAP_FAILED) return nullptr;
    char* guard = a.mapping + PAGE + body;
    mprotect(a.mapping + PAGE, body, PROT_READ | PROT_WRITE);
    // The data ends where the guard page begins, as nearly as the alignment allows: an overrun faults at once.
    a.start = (uintptr_t)(guard - wanted) & ~uintptr_t(wanted % 256 == 0 ? 255 : 15);
    memset((char*)a.start + wanted, SLACK, (uintptr_t)guard - a.start - wanted);
    if (!pinned) {
        if (wanted <= MAX_POISONED && settings.only.empty()) memset((void*)a.start, POISON, wanted);
        a.shadow = std::make_unique<Shadow>(wanted);
        in_use[device] += bytes;
    }
    void* start = (void*)a.start;
    allocations.emplace(a.start, std::move(a));
    return start;
}

bool release(uintptr_t start) {
    auto found = allocations.find(start);
    if (found == allocations.end() || !found->second.mapping) return false;
    Allocation& a = found->second;
    if (!a.pinned) in_use[a.device] -= a.bytes;
    char* guard = a.mapping + a.mapping_bytes - PAGE;
    for (char* c = (char*)a.start + std::max<size_t>(a.bytes, 1); c < guard; c++) {
        if ((unsigned char)*c == SLACK) continue;
        report("write past the end of the %zu-byte allocation at %#zx (found when it was freed)", a.bytes, a.start);
        break;
    }
    // The addresses stay reserved for a while, so that a use after free faults.
    mmap(a.mapping, a.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    freed_bytes[a.start] = a.bytes;
    quarantine.push_back({a.start, a.bytes, a.mapping, a.mapping_bytes});
    if (quarantine.size() > QUARANTINE) {
        Freed oldest = quarantine.front();
        quarantine.pop_front();
        freed_bytes.erase(oldest.start);
        munmap(oldest.mapping, oldest.mapping_bytes);
    }
    allocations.erase(found);
    return true;
}

void add_module_variable(uintptr_t start, size_t bytes) {
    if (find_allocation(start)) return;
    Allocation a;
    a.start = start;
    a.bytes = bytes;
    a.shadow = std::make_unique<Shadow>(bytes);
    a.shadow->all_written = true;
    allocations.emplace(start, std::move(a));
}

void mark_written(uintptr_t start, size_t bytes) {
    Allocation* a = find_allocation(start);
    if (a && a->shadow) a->shadow->mark_written(start - a->start, std::min(bytes, a->start + a->bytes - start));
}

void copy_written_marks(uintptr_t to, uintptr_t from, size_t bytes) {
    Allocation *a = find_allocation(to), *b = find_allocation(from);
    if (bytes && a && b && a->shadow && b->shadow && !a->shadow->all_written && !b->shadow->all_written)
        memmove(&a->shadow->written[to - a->start], &b->shadow->written[from - b->start], bytes);
    else
        mark_written(to, bytes);
}

}  // namespace stand_in
