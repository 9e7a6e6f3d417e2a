// Which accesses are in order: a part of grid.cpp, inside its namespace.
#pragma once

// Whether an access in the same interval, by that warp in that interval of its own, came before this one by a sync of the warp.
bool ordered_by_warp(int other_warp, uint32_t other_interval) {
    return other_warp == me / WARP && other_interval < warp_interval[me / WARP];
}

bool write_conflicts(const Shadow& s) {
    if (s.write_interval < block_first) return true;
    int writer = s.writer & 0x3ff;
    return s.write_interval == interval && writer != me && !ordered_by_warp(writer / WARP, s.write_warp_interval);
}

bool read_conflicts(const Shadow& s) {
    if (s.read_interval < block_first || s.reader == SEVERAL_BLOCKS) return true;
    if (s.read_interval != interval || s.reader == me) return false;
    if (s.reader == SEVERAL) return true;
    int warp = s.reader & SEVERAL_OF_WARP ? s.reader & 0x3f : s.reader / WARP;
    return !ordered_by_warp(warp, s.read_warp_interval);
}

void note_read(Shadow& s, uint32_t first) {
    int warp = me / WARP;
    uint16_t reader = uint16_t(me);
    if (s.read_interval >= first && (s.read_interval < block_first || s.reader == SEVERAL_BLOCKS)) {
        reader = SEVERAL_BLOCKS;
    } else if (s.read_interval == interval && s.reader != me) {
        int other = s.reader == SEVERAL ? -1 : s.reader & SEVERAL_OF_WARP ? s.reader & 0x3f : s.reader / WARP;
        if (other != warp) {
            reader = SEVERAL;
        } else if (s.read_warp_interval == warp_interval[warp]) {
            reader = uint16_t(SEVERAL_OF_WARP | warp);
        }
    }
    s.read_interval = interval;
    s.read_warp_interval = warp_interval[warp];
    s.reader = reader;
}

const char* const VERBS[] = {"reads", "writes", "atomically changes"};

void check(Shadow* shadow, uint64_t offset, uint64_t bytes, Kind kind, bool shared) {
    const uint32_t first = shared ? block_first : launch_first;
    for (uint64_t piece = offset / PIECE; piece <= (offset + bytes - 1) / PIECE; piece++) {
        Shadow& s = shadow[piece];
        bool written = s.write_interval >= first;
        if (shared && !written && kind != WRITE) fail("byte %lu of shared memory is read before it was written", offset);
        bool both_atomic = kind == ATOMICALLY && (s.writer & ATOMIC) != 0;
        if (written && !both_atomic && write_conflicts(s)) {
            fail("a race: %s byte %lu of %s, which thread %d wrote without a barrier between", VERBS[kind], offset,
                 shared ? "shared memory" : "an allocation", s.writer & 0x3ff);
        }
        if (kind == READ) {
            note_read(s, first);
            continue;
        }
        if (s.read_interval >= first && read_conflicts(s)) {
            fail("a race: %s byte %lu of %s, which another thread read without a barrier between", VERBS[kind], offset,
                 shared ? "shared memory" : "an allocation");
        }
        s.write_interval = interval;
        s.write_warp_interval = warp_interval[me / WARP];
        s.writer = uint16_t(me | (kind == ATOMICALLY ? ATOMIC : 0));
    }
}

bool within(uint64_t at, uint64_t bytes, const void* start, uint64_t len) {
    return at - uint64_t(start) < len && at - uint64_t(start) + bytes <= len;
}

const Region* find(uint64_t at) {
    uint64_t low = 0, high = launch->regions_len;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        const Region& r = launch->regions[middle];
        if (at < r.start) {
            high = middle;
        } else if (at >= r.start + r.bytes) {
            low = middle + 1;
        } else {
            return &r;
        }
    }
    return nullptr;
}

void touch(const void* address, uint64_t bytes, Kind kind) {
    if (!running || bytes == 0) return;
    const uint64_t at = uint64_t(address);
    if (within(at, bytes, fibers[me].stack, STACK)) return;
    if (within(at, bytes, &weir_place, sizeof(weir_place)) && kind == READ) return;
    if (bytes <= 16 && (bytes & (bytes - 1)) == 0 && at % bytes != 0) {
        fail("%s %lu bytes at %p, which is not a multiple of its size", VERBS[kind], bytes, address);
    }
    if (within(at, bytes, dynamic_shared, launch->shared_bytes)) {
        check(dynamic_shadow, at - uint64_t(dynamic_shared), bytes, kind, true);
        return;
    }
    if (within(at, bytes, __bss_start, _end - __bss_start)) {
        check(static_shadow, at - uint64_t(__bss_start), bytes, kind, true);
        return;
    }
    const Region* region = last_region;
    if (!region || !within(at, bytes, (void*)region->start, region->bytes)) region = find(at);
    if (region && within(at, bytes, (void*)region->start, region->bytes)) {
        last_region = region;
        check(region->shadow, at - region->start, bytes, kind, false);
        return;
    }
    if (kind == READ && within(at, bytes, __ehdr_start, __bss_start - __ehdr_start)) return;
    if (within(at, 1, dynamic_shared, SHARED_MAX)) {
        fail("%s %lu bytes at byte %lu of %u bytes of dynamic shared memory", VERBS[kind], bytes, at - uint64_t(dynamic_shared),
             launch->shared_bytes);
    }
    // The allocation it came nearest to, if it came near one.
    const Region* nearest = nullptr;
    uint64_t distance = 4096;
    for (uint64_t i = 0; i < launch->regions_len; i++) {
        const Region& r = launch->regions[i];
        uint64_t off = at < r.start ? r.start - at : at < r.start + r.bytes ? 0 : at - (r.start + r.bytes) + 1;
        if (off < distance) {
            distance = off;
            nearest = &r;
        }
    }
    if (nearest) fail("%s %lu bytes at byte %ld of an allocation of %lu", VERBS[kind], bytes, long(at - nearest->start), nearest->bytes);
    fail("%s %lu bytes at %p, which is no allocation", VERBS[kind], bytes, address);
}

// Makes shared memory what nobody has written.
void forget(const void* address, uint64_t bytes) {
    const uint64_t at = uint64_t(address);
    const bool is_dynamic = within(at, bytes, dynamic_shared, SHARED_MAX);
    if (!is_dynamic && !within(at, bytes, __bss_start, _end - __bss_start)) fail("an asynchronous copy to what is not shared memory");
    Shadow* shadow = is_dynamic ? dynamic_shadow : static_shadow;
    const uint64_t offset = at - uint64_t(is_dynamic ? dynamic_shared : __bss_start);
    for (uint64_t piece = offset / PIECE; piece < (offset + bytes) / PIECE; piece++) shadow[piece].write_interval = 0;
}
