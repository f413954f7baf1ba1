// The check mode: every memory access of a kernel is looked at for bounds, alignment, uninitialised reads and races.
#include "executor.h"

namespace stand_in {

// A piece of memory that threads share.
struct Place {
    Shadow* shadow = nullptr;
    size_t offset = 0, bytes = 0;
    bool shared = false;
};

static Allocation* find_recent(Executor& e, uintptr_t address) {
    for (Allocation* a : e.recent)
        if (a && a->contains(address)) return a;
    Allocation* a = find_allocation(address);
    if (a) e.recent[e.next_recent++ % 4] = a;
    return a;
}

// No shadow: nothing to check there (registers, parameters, constants, pinned memory), or not memory of the device at
// all.
static Place find_place(Executor& e, uintptr_t address, bool* unknown) {
    const Launch& launch = *e.launch;
    *unknown = false;
    if (address - (uintptr_t)e.fiber->stack < STACK_BYTES) return {};
    uintptr_t dynamic = (uintptr_t)e.info.dynamic_shared, fixed = (uintptr_t)e.static_shared;
    if (dynamic && address - dynamic < launch.dynamic_shared)
        return {e.dynamic_shadow.get(), address - dynamic, launch.dynamic_shared, true};
    if (fixed && address - fixed < e.static_bytes)
        return {e.static_shadow.get(), address - fixed, e.static_bytes, true};
    if (Allocation* a = find_recent(e, address)) {
        if (!a->shadow) return {};
        return {a->shadow.get(), address - a->start, a->bytes, false};
    }
    if (address - (uintptr_t)launch.parameter_bytes < launch.parameter_size) return {};
    if (address - (uintptr_t)&e.info < sizeof e.info) return {};
    const Module& module = *launch.function->module;
    if (address - module.start < module.end - module.start) return {};
    *unknown = true;
    return {};
}

// ---- Races --------------------------------------------------------------------------------------------------------

static uint32_t run_of(const Executor& e, bool shared) { return shared ? e.block_serial : e.launch->id; }

static bool same_warp(const Executor& e, const Toucher& t) {
    return t.block == e.block_number && t.thread / 32 == e.current / 32;
}

// Whether what `t` did came before the current thread's access in every order of threads and blocks.
static bool came_before(const Executor& e, const Toucher& t, bool shared) {
    if (t.launch != run_of(e, shared)) return true;
    if (t.block != e.block_number) return false;
    if (t.thread == e.current || t.barriers != e.barriers) return true;
    return same_warp(e, t) && t.warp_barriers != e.warps[e.current / 32].barriers;
}

static bool readers_came_before(const Executor& e, const Toucher& reader, bool shared) {
    if (!came_before(e, reader, shared)) return false;
    bool recent = reader.launch == run_of(e, shared) && reader.block == e.block_number && reader.barriers == e.barriers;
    if (!recent || !reader.others) return true;
    return reader.others == 1 && same_warp(e, reader) && reader.warp_barriers != e.warps[e.current / 32].barriers;
}

static void complain_of_race(Executor& e, const char* what, bool shared, const void* at, const char* did,
                             const Toucher& by, void* pc) {
    complain(e, pc, "race: %s of %s memory %p, %s by thread %u of block %u with no barrier between", what,
             shared ? "shared" : "global", at, did, by.thread, by.block);
}

// Looks at one cell and, if `record`, notes the access in it; false after a report.
static bool check_cell(Executor& e, Toucher& writer, Toucher& reader, int kind, bool record, bool shared,
                       const void* at, void* pc) {
    bool writes = kind & WRITE, atomic = kind & ATOMIC;
    if (!came_before(e, writer, shared) && !(atomic && writer.atomic)) {
        complain_of_race(e, writes ? "write" : "read", shared, at, writer.atomic ? "updated atomically" : "written",
                         writer, pc);
        return false;
    }
    if (writes && !atomic && !readers_came_before(e, reader, shared)) {
        complain_of_race(e, "write", shared, at, "read", reader, pc);
        return false;
    }
    if (!record) return true;
    Toucher now{run_of(e, shared),   e.block_number,  e.barriers, e.warps[e.current / 32].barriers,
                (uint16_t)e.current, (uint8_t)atomic, 0};
    if (writes)
        writer = now;
    else if (came_before(e, reader, shared))
        reader = now;
    else if (reader.thread != e.current || reader.block != e.block_number)
        reader.others = same_warp(e, reader) && reader.others < 2 ? 1 : 2;
    return true;
}

static void check_races(Executor& e, const Place& place, size_t bytes, int kind, const void* at, void* pc) {
    Shadow& s = *place.shadow;
    bool words = bytes % 4 == 0 && place.offset % 4 == 0;
    if (words && !s.word_writer) {
        s.word_writer = LazyArray<Toucher>(s.bytes / 4 + 1);
        s.word_reader = LazyArray<Toucher>(s.bytes / 4 + 1);
    }
    if (!words && !s.byte_writer) {
        s.byte_writer = LazyArray<Toucher>(s.bytes);
        s.byte_reader = LazyArray<Toucher>(s.bytes);
    }
    // An access is kept in the cells of its own size, and compared with those of both.
    if (s.word_writer)
        for (size_t w = place.offset / 4; w < (place.offset + bytes + 3) / 4; w++)
            if (!check_cell(e, s.word_writer[w], s.word_reader[w], kind, words, place.shared, at, pc)) return;
    if (s.byte_writer)
        for (size_t b = place.offset; b < place.offset + bytes; b++)
            if (!check_cell(e, s.byte_writer[b], s.byte_reader[b], kind, !words, place.shared, at, pc)) return;
}

// ---- One access ---------------------------------------------------------------------------------------------------

void check_access(Executor& e, const void* at, size_t bytes, int kind, void* pc) {
    uintptr_t address = (uintptr_t)at;
    bool unknown;
    Place place = find_place(e, address, &unknown);
    const char* what = kind & WRITE ? "write" : "read";
    bool vector = bytes == 2 || bytes == 4 || bytes == 8 || bytes == 16;
    if ((place.shadow || unknown) && vector && address % bytes) {
        complain(e, pc, "misaligned %zu-byte %s at %p", bytes, what, at);
        abandon_thread(e);
    }
    if (unknown) {
        complain(e, pc, "out-of-bounds %zu-byte %s at %p, %s", bytes, what, at, describe_address(address).c_str());
        abandon_thread(e);
    }
    if (!place.shadow) return;
    const char* memory = place.shared ? "shared" : "global";
    if (place.offset + bytes > place.bytes) {
        complain(e, pc, "out-of-bounds %zu-byte %s at %p, %s memory ends %zu bytes before its end", bytes, what, at,
                 memory, place.offset + bytes - place.bytes);
        abandon_thread(e);
    }
    bool reads = !(kind & WRITE) || (kind & ATOMIC);
    if (reads && !place.shadow->is_written(place.offset, bytes)) {
        complain(e, pc, "read of uninitialised %s memory at %p%s%s", memory, at, place.shared ? "" : ", ",
                 place.shared ? "" : describe_address(address).c_str());
        place.shadow->mark_written(place.offset, bytes);  // one report is enough
    }
    check_races(e, place, bytes, kind, at, pc);
    if (kind & WRITE) place.shadow->mark_written(place.offset, bytes);
}

void forget_written(Executor& e, const void* at, size_t bytes) {
    bool unknown;
    Place place = find_place(e, (uintptr_t)at, &unknown);
    if (place.shadow) place.shadow->mark_unwritten(place.offset, bytes);
}

}  // namespace stand_in
