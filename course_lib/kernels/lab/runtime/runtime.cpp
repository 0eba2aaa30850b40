// Executes a kernel on a CPU: blocks one after another, the threads of a block as fibers, warp by warp.
//
// The kernel is compiled with -fsanitize=thread and linked with this file instead of the sanitizer, so that
// every load and store calls us before it happens. What the callbacks are given beside the address, the number
// of the call site, is put into a register by build.py. All of it runs in a child process, which may crash.
#include "runtime.h"

#include <dlfcn.h>
#if defined(__linux__)
#include <link.h>
#endif
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/prctl.h>
#endif

#include "fiber.h"
#include "launch.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

extern "C" {
// What a kernel reads as threadIdx and so on; const for the kernel, since no thread sees them change.
LabIndex threadIdx, blockIdx, blockDim, gridDim;
LabIndex lab_grid_threads, lab_block_size;
}

namespace {

constexpr u32 MAX_THREADS = 1024, WARP = 32;
constexpr u64 STACK = 64 * 1024, GUARD = 16 * 1024;
constexpr u64 GAP = 1 << 20;       // unmapped room between global buffers
constexpr u64 RED_ZONE = 128;      // between shared arrays; a multiple of 32 banks, so that no bank shifts
constexpr u64 SHARED_SPAN = 1 << 20;
constexpr u32 STEPS = 1024;        // accesses of one site that a lane may run ahead of its warp
constexpr u32 POLLS = 64;          // polls of a thread before the others have a turn

enum State : u8 { NEW, READY, AT_BARRIER, TOGETHER, PARKED, YIELDED, DONE };

struct Copy {
    void* to;
    const void* from;
    u32 size, zeros;
    int line;
    u32 group;
};

struct Thread {
    void* stack_pointer;
    u8* stack;
    LabIndex index;
    u16 number;  // in the block
    u8 lane;
    State state;
    u16 warp;
    u32 polls;
    int line;  // where it waits
    u32 mask;
    const char* what;
    LabTogether op;
    void* argument;
    Copy* copies;
    u32 copy_count, copy_room, copy_groups;
};

struct Warp {
    u32 first, lanes;      // threads first .. first + lanes - 1
    u32 live, waiting;     // masks of lanes
    u32 now;                 // the warp's clock
    u32 all_met[2];          // when a barrier last ordered all live lanes' accesses: shared, global memory
    u32 met[2][WARP][WARP];  // when one of some lanes last ordered those of two
    bool partial;          // whether `met` is in use
};

// One access of one site by the lanes of a warp: the unit in which the hardware forms transactions.
struct Group {
    u32 mask, object;
    u32 offset[WARP];
};

struct Site {
    u32 line, kind, size, used;
    u32 count[WARP];
    Group* groups;
    u32 last_object, last_stat;
};

struct Access {
    u32 epoch, time, line;  // epoch 0: there was none
    u16 thread;
    u16 flag;  // of a write: it was atomic; of a read: other lanes of the warp read too, at the same time
};

// The last accesses of one word (or, where its bytes are used singly, of one byte): the last write, the last
// read, and the last read of another warp or block than that.
struct Cell {
    Access write, read, other;
};

struct Dynamic {
    u64 key;
    u32 site;
};

LabIndex lab_block_now;  // the block of which a finding speaks
LabLaunch* launch;
LabReport* report;
u32 level, warp_size, threads, warps;
Thread thread[MAX_THREADS];
Warp warp[MAX_THREADS / 4 + 1];
Thread* self;
Warp* mine;
void* scheduler;

u8* stacks;
u64 stack_span;
u8* free_stacks[MAX_THREADS];
u32 free_count;

u8 *global, *shared;
u64 global_span;
u8* written;  // of each byte of shared memory: 1 once it was written in this block
u64 shared_high, argument_begin[32];
const void* shared_key[LAB_MAX_SHARED];
u32 shared_live;  // arrays 0 .. shared_live - 1 are of this kernel

Site* sites;
u32 site_count, touched_count;
constexpr u32 MAX_DYNAMIC = 4096;
Dynamic dynamic_sites[MAX_DYNAMIC];
u32* touched;
u32 last_site_line;

Cell *global_cells, *shared_cells;
Cell *global_bytes, *shared_bytes;  // cells of single bytes
u8 *global_split, *shared_split;    // of each word: whether its bytes have cells of their own
u32 epoch, block_epoch, block_number;
u32 ordered_epoch[2];      // the first epoch after the last barrier that ordered shared, global memory
u32* epoch_of_block;       // the first epoch of the n-th block that ran
u32* released;             // of the n-th block: the epoch of its last fence
bool acquired;             // this block has done an atomic, and may have learned from it
bool tracing;
bool together;              // an operation of a warp is being done

u32 barrier_predicates, barrier_result, barrier_spaces;

inline u32 bits(u32 mask) { return (u32)__builtin_popcount(mask); }
inline u32 least(u32 a, u32 b) { return a < b ? a : b; }

// findings

void place(LabPlace& p, const Thread& t, u32 line, u32 kind) {
    p.block[0] = lab_block_now.x, p.block[1] = lab_block_now.y, p.block[2] = lab_block_now.z;
    p.thread[0] = t.index.x, p.thread[1] = t.index.y, p.thread[2] = t.index.z;
    p.line = line, p.kind = kind;
}

LabFinding* found(u32 kind, u32 line, u32 access, u32 size, u32 object, int64_t offset) {
    if (report->findings >= LAB_MAX_FINDINGS) return nullptr;
    LabFinding& f = report->finding[report->findings];
    f.kind = kind, f.size = size, f.object = object, f.offset = offset;
    if (self) place(f.here, *self, line, access);
    return &f;
}

[[noreturn]] void stop(LabFinding* f) {
    if (f) report->findings++;
    _exit(0);
}

void put_text(LabFinding* f, const char* text) {
    if (f) strncpy(f->text, text, sizeof(f->text) - 1);
}

// scheduling

void wait(State state) {
    self->state = state;
    lab_switch(&self->stack_pointer, scheduler);
}

void resume(Thread& t) {
    if (t.state == NEW) {
        t.stack = free_stacks[--free_count];
        t.stack_pointer = lab_new_stack(t.stack + STACK);
    }
    t.state = READY;
    self = &t;
    threadIdx = t.index;
    lab_switch(&scheduler, t.stack_pointer);
    if (t.state == DONE) free_stacks[free_count++] = t.stack;
}

// counting

LabStat* stat_of(Site& site, u32 object) {
    if (site.last_stat != ~0u && report->stat[site.last_stat].object == object &&
        report->stat[site.last_stat].size == site.size)
        return &report->stat[site.last_stat];
    for (u32 i = 0; i < report->stats; ++i) {
        LabStat& s = report->stat[i];
        if (s.line == site.line && s.object == object && s.kind == site.kind && s.size == site.size) {
            site.last_stat = i;
            return &s;
        }
    }
    if (report->stats == LAB_MAX_STATS) {
        report->lost_stats++;
        return nullptr;
    }
    site.last_stat = report->stats++;
    LabStat& s = report->stat[site.last_stat];
    s.line = site.line, s.object = object, s.kind = site.kind, s.size = site.size;
    return &s;
}

// The number of different values among `count` keys, most of which equal their neighbor.
u32 distinct(const u32* keys, u32 count) {
    u32 seen[WARP], n = 0;
    for (u32 i = 0; i < count; ++i) {
        if (i && keys[i] == keys[i - 1]) continue;
        u32 j = 0;
        while (j < n && seen[j] != keys[i]) ++j;
        if (j == n) seen[n++] = keys[i];
    }
    return n;
}

// Passes that shared memory needs for the words of one phase: the most different words that one bank holds.
u32 passes(const u32* words, u32 count) {
    bool rising = true;
    for (u32 i = 1; i < count && rising; ++i) rising = words[i] == words[i - 1] || words[i] == words[i - 1] + 1;
    if (rising && count && words[count - 1] - words[0] < 32) return 1;
    u32 held[32][WARP], most = 1;
    u8 n[32] = {};
    for (u32 i = 0; i < count; ++i) {
        if (i && words[i] == words[i - 1]) continue;
        u32 bank = words[i] & 31, j = 0;
        while (j < n[bank] && held[bank][j] != words[i]) ++j;
        if (j == n[bank]) {
            held[bank][n[bank]++] = words[i];
            if (n[bank] > most) most = n[bank];
        }
    }
    return most;
}

void fold(Site& site, Group& g) {
    LabStat* s = stat_of(site, g.object);
    if (!s) return;
    u32 count = bits(g.mask), size = site.size;
    s->requests += 1, s->accesses += count, s->bytes += (u64)count * size;
    u32 at[WARP], n = 0;
    for (u32 m = g.mask; m; m &= m - 1) at[n++] = g.offset[__builtin_ctz(m)];
    if (g.object < LAB_SHARED_OBJECT) {
        u32 key[WARP], last = ~0u, sectors = 0, values = 0;
        bool rising = true;
        for (u32 i = 0; i < n && rising; ++i) {
            rising = i == 0 || at[i] >= at[i - 1];
            if (i == 0 || at[i] != at[i - 1]) values++;
            if ((at[i] >> 5) != last) sectors++, last = at[i] >> 5;
        }
        if (!rising) {
            values = distinct(at, n);
            for (u32 i = 0; i < n; ++i) key[i] = at[i] >> 5;
            sectors = distinct(key, n);
        }
        s->sectors += sectors;
        s->ideal_sectors += (values * size + 31) / 32;
        return;
    }
    // Four bytes a lane go to 32 banks at once; of 8 bytes a half-warp, of 16 a quarter.
    u32 lanes = size <= 4 ? 32 : size == 8 ? 16 : 8, per = size <= 4 ? 1 : size / 4;
    for (u32 first = 0; first < WARP; first += lanes) {
        u32 words[WARP * 4], k = 0;
        for (u32 lane = first; lane < first + lanes; ++lane)
            if (g.mask >> lane & 1)
                for (u32 w = 0; w < per; ++w) words[k++] = (g.offset[lane] >> 2) + w;
        if (!k) continue;
        s->wavefronts += passes(words, k);
        s->ideal_wavefronts += 1;
    }
}

// The lanes have met, or can't go on: what they did since is complete.
void flush() {
    for (u32 i = 0; i < touched_count; ++i) {
        Site& site = sites[touched[i]];
        for (u32 k = 0; k < site.used; ++k)
            if (site.groups[k].mask) fold(site, site.groups[k]);
        site.used = 0;
        memset(site.count, 0, sizeof(site.count));
    }
    touched_count = 0;
}

void record(u32 number, u32 kind, u32 size, u32 object, u64 offset, u64 within) {
    Site& site = sites[number];
    u32 lane = self->lane;
    if (site.count[lane] == STEPS) wait(PARKED);  // let the other lanes catch up
    u32 k = site.count[lane]++;
    if (k >= site.used) {
        if (!site.groups) site.groups = (Group*)malloc(STEPS * sizeof(Group));
        if (!site.used) touched[touched_count++] = number;
        while (site.used <= k) site.groups[site.used++].mask = 0;
        site.kind = kind, site.size = size;
    }
    Group& g = site.groups[k];
    if (!g.mask) g.object = object;
    g.mask |= 1u << lane;
    g.offset[lane] = (u32)offset;
    if (tracing && self->warp == launch->trace_warp && report->traced < LAB_MAX_TRACE)
        report->trace[report->traced++] = LabTrace{site.line, k, lane, object, kind, size, within};
}

// races

inline bool met_since(const Thread& then, u32 time, bool in_shared) {
    if (then.warp != self->warp) return false;
    if (then.number == self->number) return true;
    u32 s = in_shared ? 0 : 1;
    return mine->all_met[s] > time || (mine->partial && mine->met[s][then.lane][self->lane] > time);
}

u32 block_of(u32 e) {
    u32 low = 0, high = block_number;
    while (low < high) {
        u32 middle = (low + high + 1) / 2;
        if (epoch_of_block[middle] <= e) low = middle;
        else high = middle - 1;
    }
    return low;
}

// Whether an earlier access is certainly over for the thread that runs now.
inline bool ordered(const Access& a, bool in_shared) {
    if (a.epoch >= block_epoch)
        return a.epoch < ordered_epoch[in_shared ? 0 : 1] || met_since(thread[a.thread], a.time, in_shared);
    // Another block's: its shared memory is gone; in global memory only a fence there and an atomic here put
    // the two in order.
    return in_shared || (acquired && released[block_of(a.epoch)] >= a.epoch);
}

void race(const Access& a, u32 other_kind, u32 line, u32 kind, u32 size, u32 object, u64 within) {
    for (u32 i = 0; i < report->findings; ++i) {
        LabFinding& f = report->finding[i];
        if (f.kind == LAB_RACE && f.object == object && f.here.line == line && f.other.line == a.line &&
            f.here.kind == kind)
            return;
    }
    LabFinding* f = found(LAB_RACE, line, kind, size, object, (int64_t)within);
    if (!f) return;
    u32 b = launch->order[block_of(a.epoch)];
    LabIndex now = lab_block_now;
    lab_block_now = {b % gridDim.x, b / gridDim.x % gridDim.y, b / gridDim.x / gridDim.y};
    place(f->other, thread[a.thread], a.line, other_kind);
    lab_block_now = now;
    report->findings++;
}

void check_cell(Cell& c, bool in_shared, u32 line, u32 kind, u32 size, u32 object, u64 within) {
    bool atomic = kind == LAB_ATOMIC;
    Access now{epoch, mine->now, line, self->number, 0};
    const Access &w = c.write, &r = c.read;
    if (w.epoch && !(atomic && w.flag) && !ordered(w, in_shared))
        race(w, w.flag ? LAB_ATOMIC : LAB_WRITE, line, kind, size, object, within);
    if (kind == LAB_READ) {
        if (r.epoch >= block_epoch && thread[r.thread].warp == self->warp) {
            bool same = r.epoch == epoch && r.time == mine->now;
            now.flag = same && (r.flag || r.thread != self->number);
        } else if (r.epoch) {
            c.other = r;
        }
        c.read = now;
        return;
    }
    if (r.epoch) {
        if (r.thread == self->number && r.flag && r.epoch == epoch && r.time == mine->now) {
            Access neighbor = r;
            neighbor.thread = (u16)(mine->first + (self->lane ? self->lane - 1u : 1u));
            race(neighbor, LAB_READ, line, kind, size, object, within);
        } else if (!ordered(r, in_shared)) {
            race(r, LAB_READ, line, kind, size, object, within);
        } else if (c.other.epoch && !ordered(c.other, in_shared)) {
            race(c.other, LAB_READ, line, kind, size, object, within);
        }
    }
    now.flag = atomic;
    c.write = now;
}

void* room(u64 bytes);

// Few kernels touch single bytes; four times the room of the words is taken when one does.
Cell* byte_cells(bool in_shared) {
    u64 span = in_shared ? SHARED_SPAN : global_span;
    return (Cell*)room((span + 4) * sizeof(Cell));
}

void check_race(bool in_shared, u64 offset, u32 line, u32 kind, u32 size, u32 object, u64 within) {
    Cell* cells = in_shared ? shared_cells : global_cells;
    Cell*& bytes = in_shared ? shared_bytes : global_bytes;
    u8* split = in_shared ? shared_split : global_split;
    for (u64 at = offset, end = offset + size; at < end;) {
        u64 word = at >> 2;
        bool whole = !(at & 3) && end - at >= 4;
        if (!split[word] && !whole) {
            if (!bytes) bytes = byte_cells(in_shared);
            split[word] = 1;
            for (u32 i = 0; i < 4; ++i) bytes[word * 4 + i] = cells[word];
        }
        u64 next = (word + 1) << 2;
        if (!split[word]) {
            check_cell(cells[word], in_shared, line, kind, size, object, within + (at - offset));
        } else {
            for (u64 b = at; b < next && b < end; ++b)
                check_cell(bytes[b], in_shared, line, kind, size, object, within + (b - offset));
        }
        at = next;
    }
}

// accesses

[[noreturn]] void out_of_bounds(u64 offset, u32 size, u32 kind, u32 line, bool in_shared) {
    // The object that it missed: the last one that begins before it.
    u32 object = LAB_NO_OBJECT;
    u64 best = 0;
    u32 n = in_shared ? shared_live : launch->buffers;
    for (u32 i = 0; i < n; ++i) {
        u64 begin = in_shared ? report->array[i].begin : launch->buffer[i].begin;
        // A small negative index lands just before an object, and means that one.
        bool before = offset < begin && begin - offset <= (in_shared ? RED_ZONE / 2 : GAP / 2);
        if (offset >= begin && (object == LAB_NO_OBJECT || begin >= best)) object = i, best = begin;
        if (before) {
            object = i, best = begin;
            break;
        }
    }
    LabFinding* f = found(in_shared ? LAB_SHARED_OUT_OF_BOUNDS : LAB_OUT_OF_BOUNDS, line, kind, size,
                          object == LAB_NO_OBJECT ? object : in_shared ? object + LAB_SHARED_OBJECT : object,
                          (int64_t)offset - (int64_t)best);
    stop(f);
}

[[noreturn]] void foreign(u64 a, u32 size, u32 kind, u32 line) {
    stop(found(a < 65536 ? LAB_NULL : LAB_WILD, line, kind, size, LAB_NO_OBJECT, (int64_t)a));
}

// The thread goes on, with a NaN: if another one writes there too late, that is found as a race.
void uninitialized(u32 line, u32 kind, u32 size, u32 object, u64 within) {
    for (u32 i = 0; i < report->findings; ++i) {
        const LabFinding& f = report->finding[i];
        if (f.kind == LAB_UNINITIALIZED && f.object == object && f.here.line == line) return;
    }
    if (found(LAB_UNINITIALIZED, line, kind, size, object, (int64_t)within)) report->findings++;
}

u8 *module_begin, *module_end;

void touch(u64 a, u32 size, u32 kind, u32 number) {
    Site& site = sites[number];
    u64 offset = a - (u64)shared;
    bool in_shared = offset < SHARED_SPAN;
    u32 object = site.last_object;
    u64 within;
    last_site_line = site.line;
    if (in_shared) {
        u32 i = object - LAB_SHARED_OBJECT;
        if (i >= shared_live || (within = offset - report->array[i].begin) + size > report->array[i].size ||
            within >= report->array[i].size) {
            for (i = 0; i < shared_live; ++i) {
                within = offset - report->array[i].begin;
                if (within < report->array[i].size && within + size <= report->array[i].size) break;
            }
            if (i == shared_live) out_of_bounds(offset, size, kind, site.line, true);
            site.last_object = object = i + LAB_SHARED_OBJECT;
        }
    } else {
        offset = a - (u64)global;
        if (offset >= global_span) {
            // The thread's own variables; what lanes do together looks at those of all.
            if (a - (u64)self->stack < STACK || (together && a - (u64)stacks < stack_span)) return;
            if (a - (u64)module_begin < (u64)(module_end - module_begin)) {
                if (kind == LAB_READ) return;  // constants
                lab_misuse("the kernel changes a variable that outlives the launch: pass an array instead", (int)site.line);
            }
            foreign(a, size, kind, site.line);
        }
        if (object >= launch->buffers || (within = offset - launch->buffer[object].begin) >= launch->buffer[object].size ||
            within + size > launch->buffer[object].size) {
            u32 i;
            for (i = 0; i < launch->buffers; ++i) {
                within = offset - launch->buffer[i].begin;
                if (within < launch->buffer[i].size && within + size <= launch->buffer[i].size) break;
            }
            if (i == launch->buffers) out_of_bounds(offset, size, kind, site.line, false);
            site.last_object = object = i;
        }
        if (kind != LAB_READ && launch->buffer[object].constant)
            stop(found(LAB_READ_ONLY, site.line, kind, size, object, (int64_t)within));
    }
    if (a & (size - 1)) stop(found(LAB_MISALIGNED, site.line, kind, size, object, (int64_t)within));
    if (in_shared) {
        if (kind == LAB_WRITE) {
            memset(written + offset, 1, size);
        } else {
            for (u32 i = 0; i < size; ++i)
                if (!written[offset + i]) {
                    uninitialized(site.line, kind, size, object, within);
                    break;
                }
        }
    }
    if (level >= LAB_COUNTS) record(number, kind, size, object, offset, within);
    if (level >= LAB_RACES) check_race(in_shared, offset, site.line, kind, size, object, within);
}

// A struct of an odd size is moved in the widest pieces that its alignment allows, as the hardware does.
void touch_range(u64 a, u64 size, u32 kind, u32 number) {
    u64 low = (size | 16) & -(size | 16);
    for (u64 at = 0; at < size; at += low) touch(a + at, (u32)low, kind, number);
}

u32 dynamic_site(int line, u32 kind, u32 size) {
    u64 key = ((u64)(u32)line << 32 | kind << 16 | size) + 1;
    u32 h = (u32)(key * 0x9e3779b97f4a7c15ull >> 40) % MAX_DYNAMIC;
    while (dynamic_sites[h].key && dynamic_sites[h].key != key) h = (h + 1) % MAX_DYNAMIC;
    if (!dynamic_sites[h].key) {
        dynamic_sites[h].key = key;
        dynamic_sites[h].site = site_count++;
        Site& s = sites[dynamic_sites[h].site];
        s.line = (u32)line, s.last_object = LAB_NO_OBJECT, s.last_stat = ~0u;
    }
    return dynamic_sites[h].site;
}

void run_thread() {
    launch->call(launch->values);
    if (self->copy_count && level >= LAB_BOUNDS) lab_copy_wait(0);
    self->state = DONE;
    mine->live &= ~(1u << self->lane);
    lab_switch(&self->stack_pointer, scheduler);
}

// warps

// Complete the operation that this lane waits for, if all lanes that it names are there.
bool complete(Warp& w, Thread& t) {
    u32 need = t.mask & w.live;
    if ((w.waiting & need) != need) return false;
    void* arguments[WARP] = {};
    for (u32 m = need; m; m &= m - 1) {
        u32 lane = (u32)__builtin_ctz(m);
        Thread& o = thread[w.first + lane];
        if (o.mask != t.mask || o.op != t.op) {
            Thread* before = self;
            self = &t;
            LabFinding* f = found(LAB_ABSENT_LANES, (u32)t.line, LAB_READ, 0, LAB_NO_OBJECT, 0);
            if (f) place(f->other, o, (u32)o.line, LAB_READ), f->lanes = 1u << lane;
            put_text(f, t.what);
            self = before;
            stop(f);
        }
        arguments[lane] = o.argument;
    }
    report->warp_operations++;
    together = true;
    if (t.op) t.op(arguments, need);
    together = false;
    w.now++;
    if (need == w.live) flush();
    for (u32 s = 0; s < 2; ++s) {
        if (t.op || !((uintptr_t)t.argument >> s & 1)) continue;
        if (need == w.live) {
            w.all_met[s] = w.now;
            continue;
        }
        w.partial = true;
        for (u32 m = need; m; m &= m - 1)
            for (u32 n = need; n; n &= n - 1) w.met[s][__builtin_ctz(m)][__builtin_ctz(n)] = w.now;
    }
    for (u32 m = need; m; m &= m - 1) thread[w.first + (u32)__builtin_ctz(m)].state = READY;
    w.waiting &= ~need;
    return true;
}

// Run the warp's lanes, in order, until none can go on. Returns whether any of them moved.
bool run_warp(Warp& w) {
    bool moved = false;
    mine = &w;
    for (;;) {
        bool again = false;
        for (u32 i = 0; i < w.lanes; ++i) {
            Thread& t = thread[w.first + i];
            if (t.state > READY) continue;
            resume(t);
            moved = again = true;
        }
        if (again) continue;
        bool parked = false;
        for (u32 i = 0; i < w.lanes; ++i) parked |= thread[w.first + i].state == PARKED;
        flush();
        if (!parked) {
            // Lanes named in a mask may have ended meanwhile.
            for (u32 m = w.waiting; m && !again; m &= m - 1) again = complete(w, thread[w.first + (u32)__builtin_ctz(m)]);
            if (!again) return moved;
            continue;
        }
        for (u32 i = 0; i < w.lanes; ++i)
            if (thread[w.first + i].state == PARKED) thread[w.first + i].state = READY;
    }
}

// A collective that can never be complete: a lane that it names waits elsewhere.
[[noreturn]] void stuck(Thread& waiting) {
    self = &waiting;
    Warp& w = warp[waiting.warp];
    u32 missing = waiting.mask & w.live & ~w.waiting;
    LabFinding* f = found(LAB_ABSENT_LANES, (u32)waiting.line, LAB_READ, 0, LAB_NO_OBJECT, 0);
    if (f) {
        f->lanes = missing;
        put_text(f, waiting.what);
        if (missing) {
            Thread& o = thread[w.first + (u32)__builtin_ctz(missing)];
            place(f->other, o, (u32)o.line, LAB_READ);
        }
    }
    stop(f);
}

bool release_barrier() {
    u32 waiting = 0, done = 0;
    Thread *first = nullptr, *gone = nullptr;
    for (u32 i = 0; i < threads; ++i) {
        Thread& t = thread[i];
        if (t.state == DONE) {
            done++;
            if (!gone) gone = &t;
        } else if (t.state == AT_BARRIER) {
            waiting++;
            if (!first) first = &t;
            if (t.line != first->line) {
                self = &t;
                LabFinding* f = found(LAB_DIVERGENT_BARRIER, (u32)t.line, LAB_READ, 0, LAB_NO_OBJECT, 0);
                if (f) place(f->other, *first, (u32)first->line, LAB_READ);
                stop(f);
            }
        } else if (t.state == TOGETHER) {
            stuck(t);
        }
    }
    if (!waiting) return false;
    if (done && launch->strict) {
        bool known = false;
        for (u32 i = 0; i < report->findings; ++i)
            known |= report->finding[i].kind == LAB_MISSING_BARRIER &&
                     report->finding[i].here.line == (u32)first->line;
        self = gone;
        LabFinding* f = known ? nullptr : found(LAB_MISSING_BARRIER, (u32)first->line, LAB_READ, done, LAB_NO_OBJECT, 0);
        if (f) {
            place(f->other, *first, (u32)first->line, LAB_READ);
            report->findings++;
        }
    }
    report->barriers++;
    epoch++;
    for (u32 s = 0; s < 2; ++s)
        if (barrier_spaces >> s & 1) ordered_epoch[s] = epoch;
    barrier_result = barrier_predicates;
    barrier_predicates = 0;
    for (u32 i = 0; i < threads; ++i)
        if (thread[i].state == AT_BARRIER) thread[i].state = READY;
    for (u32 i = 0; i < warps; ++i) warp[i].now++;
    return true;
}

void run_block() {
    for (;;) {
        bool moved = false, over = true;
        for (u32 i = 0; i < warps; ++i) moved |= run_warp(warp[i]);
        bool yielded = false;
        for (u32 i = 0; i < threads; ++i) {
            over &= thread[i].state == DONE;
            if (thread[i].state == YIELDED) thread[i].state = READY, yielded = true;
        }
        if (over) return;
        if (yielded) continue;
        if (release_barrier()) continue;
        if (!moved)
            for (u32 i = 0; i < threads; ++i)
                if (thread[i].state != DONE) stuck(thread[i]);
    }
}

void set_up_block(u32 number) {
    LabIndex b{number % gridDim.x, number / gridDim.x % gridDim.y, number / gridDim.x / gridDim.y};
    lab_block_now = blockIdx = b;
    tracing = number == launch->trace_block;
    LabIndex d{launch->block[0], launch->block[1], launch->block[2]};
    if (launch->threads[0]) {  // the grid's edge: fewer threads
        d.x = least(d.x, launch->threads[0] - b.x * d.x);
        d.y = least(d.y, launch->threads[1] - b.y * d.y);
        d.z = least(d.z, launch->threads[2] - b.z * d.z);
    }
    blockDim = d;
    threads = d.x * d.y * d.z;
    warps = (threads + warp_size - 1) / warp_size;
    for (u32 i = 0; i < threads; ++i) {
        Thread& t = thread[i];
        t.index = {i % d.x, i / d.x % d.y, i / d.x / d.y};
        t.number = (u16)i, t.lane = (u8)(i % warp_size), t.warp = (u16)(i / warp_size);
        t.state = NEW, t.polls = 0, t.line = 0, t.copy_count = t.copy_groups = 0;
    }
    for (u32 i = 0; i < warps; ++i) {
        Warp& w = warp[i];
        w.first = i * warp_size;
        w.lanes = least(warp_size, threads - w.first);
        w.live = w.lanes == 32 ? ~0u : (1u << w.lanes) - 1;
        w.waiting = 0, w.now = 1, w.all_met[0] = w.all_met[1] = 0;
        if (w.partial) memset(w.met, 0, sizeof(w.met));
        w.partial = false;
    }
    // NaNs in what nobody wrote: a result that depends on them shows.
    memset(shared, launch->poison ? 0xff : 0, shared_high);
    memset(written, 0, shared_high);
    barrier_predicates = 0;
    block_epoch = ordered_epoch[0] = ordered_epoch[1] = ++epoch;
    epoch_of_block[block_number] = epoch;
    released[block_number] = 0;
    acquired = false;
    if (level >= LAB_RACES) memset(shared_split, 0, (shared_high + 3) / 4);
}

// the child process

void on_signal(int number, siginfo_t* info, void*) {
    u32 kind = number == SIGFPE ? LAB_DIVISION : number == SIGUSR1 || number == SIGPROF ? LAB_ENDLESS : LAB_CRASH;
    u64 a = (u64)info->si_addr;
    if ((number == SIGSEGV || number == SIGBUS) && a - (u64)stacks < stack_span) kind = LAB_STACK_OVERFLOW;
    else if (kind == LAB_CRASH && a < 65536) kind = LAB_NULL;
    LabFinding* f = found(kind, last_site_line, LAB_READ, 0, LAB_NO_OBJECT, (int64_t)a);
    if (f) report->findings++;
    _exit(0);
}

void* room(u64 bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        put_text(found(LAB_MISUSE, 0, LAB_READ, 0, LAB_NO_OBJECT, 0), "there is not enough memory for this launch");
        report->findings++;
        _exit(0);
    }
    return at;
}

void set_up_stacks() {
    // A kernel without barriers uses one stack again and again: the others cost address space only.
    stack_span = (STACK + GUARD) * MAX_THREADS;
    u32 n = launch->block[0] * launch->block[1] * launch->block[2];
    stack_span = (STACK + GUARD) * n;
    stacks = (u8*)room(stack_span);
    for (u32 i = 0; i < n; ++i) {
        u8* low = stacks + i * (STACK + GUARD);
        mprotect(low, GUARD, PROT_NONE);
        free_stacks[n - 1 - i] = low + GUARD;
    }
    free_count = n;
}

// Where the module's own data lie: constants, which a kernel may read.
#if defined(__linux__)
int find_module(dl_phdr_info* info, size_t, void*) {
    u64 low = ~0ull, high = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
        u64 begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        if (begin < low) low = begin;
        if (begin + info->dlpi_phdr[i].p_memsz > high) high = begin + info->dlpi_phdr[i].p_memsz;
    }
    if ((u64)launch->call < low || (u64)launch->call >= high) return 0;
    module_begin = (u8*)low, module_end = (u8*)high;
    return 1;
}
void find_module() { dl_iterate_phdr(find_module, nullptr); }
#else
void find_module() {
    Dl_info info;
    if (!dladdr((void*)launch->call, &info)) return;
    module_begin = (u8*)info.dli_fbase, module_end = module_begin + (16 << 20);
}
#endif

void run() {
    find_module();
    warp_size = launch->warp_size, level = launch->level;
    set_up_stacks();
    shared = (u8*)room(SHARED_SPAN);
    written = (u8*)room(SHARED_SPAN);
    site_count = launch->sites;
    sites = (Site*)room((site_count + MAX_DYNAMIC) * sizeof(Site));
    touched = (u32*)room((site_count + MAX_DYNAMIC) * sizeof(u32));
    for (u32 i = 0; i < site_count; ++i) {
        sites[i].line = launch->site_lines[i];
        sites[i].last_object = LAB_NO_OBJECT, sites[i].last_stat = ~0u;
    }
    epoch_of_block = (u32*)room(launch->blocks * sizeof(u32) + 8);
    released = (u32*)room(launch->blocks * sizeof(u32) + 8);
    if (level >= LAB_RACES) {
        u64 words = (global_span + 3) / 4 + 1, shared_words = SHARED_SPAN / 4;
        global_cells = (Cell*)room(words * sizeof(Cell));
        shared_cells = (Cell*)room(shared_words * sizeof(Cell));
        global_split = (u8*)room(words);
        shared_split = (u8*)room(shared_words);
    }
    gridDim = {launch->grid[0], launch->grid[1], launch->grid[2]};
    lab_block_size = {launch->block[0], launch->block[1], launch->block[2]};
    lab_grid_threads = {launch->threads[0], launch->threads[1], launch->threads[2]};
    shared_high = RED_ZONE;
    for (u32 i = 0; i < launch->arguments && i < 32; ++i) {
        static char keys[32];
        argument_begin[i] = (u64)lab_shared(&keys[i], "", launch->argument_bytes[i], 16, 0);
    }
    for (block_number = 0; block_number < launch->blocks; ++block_number) {
        set_up_block(launch->order[block_number]);
        run_block();
    }
    report->shared_bytes = 0;
    for (u32 i = 0; i < report->shared; ++i) report->shared_bytes += report->array[i].size;
    report->finished = 1;
}

}  // namespace

extern "C" {

void lab_thread() { run_thread(); }

uint32_t lab_barrier(uint32_t predicate, int line, uint32_t spaces) {
    barrier_spaces = spaces;
    barrier_predicates += predicate != 0;
    self->line = line;
    wait(AT_BARRIER);
    return barrier_result;
}

void lab_together(uint32_t mask, const char* what, LabTogether op, void* argument, int line) {
    Thread& t = *self;
    t.line = line;
    if (!(mask >> t.lane & 1)) {
        LabFinding* f = found(LAB_ABSENT_LANES, (u32)line, LAB_READ, 0, LAB_NO_OBJECT, 0);
        if (f) place(f->other, t, (u32)line, LAB_READ), f->lanes = 1u << t.lane;
        put_text(f, what);
        stop(f);
    }
    t.mask = mask, t.what = what, t.op = op, t.argument = argument;
    t.state = TOGETHER;
    mine->waiting |= 1u << t.lane;
    if (complete(*mine, t)) return;  // the last to come goes on at once
    wait(TOGETHER);
}

uint32_t lab_lane() { return self->lane; }
uint32_t lab_live_lanes() { return mine->live; }

void* lab_shared(const void* key, const char* name, uint64_t size, uint64_t align, int line) {
    for (u32 i = 0; i < shared_live; ++i)
        if (shared_key[i] == key) return shared + report->array[i].begin;
    u64 step = align > RED_ZONE ? align : RED_ZONE;
    u64 begin = (shared_high + RED_ZONE + step - 1) / step * step;
    if (shared_live == LAB_MAX_SHARED || begin + size + RED_ZONE > SHARED_SPAN)
        lab_misuse("the kernel's shared arrays are more than the lab can hold", line);
    memset(shared + shared_high, launch->poison ? 0xff : 0, begin + size + RED_ZONE - shared_high);
    LabSharedArray& a = report->array[shared_live];
    strncpy(a.name, name, sizeof(a.name) - 1);
    a.size = size, a.begin = begin, a.line = (u32)line;
    shared_key[shared_live++] = key;
    report->shared = shared_live;
    shared_high = begin + size + RED_ZONE;
    return shared + begin;
}

void* lab_dynamic_shared(const char* name, int line) {
    static char key;
    if (!launch->shared_bytes)
        lab_misuse("the kernel uses dynamic shared memory, and the launch gave it none: say shared_bytes=…", line);
    u32 before = shared_live;
    void* at = lab_shared(&key, name, launch->shared_bytes, 16, line);
    if (shared_live > before) report->array[before].dynamic = 1;
    return at;
}

void* lab_threadgroup_argument(uint32_t index, const char* name, int line) {
    if (index >= launch->arguments || !launch->argument_bytes[index])
        lab_misuse("a threadgroup argument has no length: give its bytes with shared_bytes=", line);
    LabSharedArray& a = report->array[index];
    if (!a.line) {
        strncpy(a.name, name, sizeof(a.name) - 1);
        a.line = (u32)line, a.dynamic = 1;
    }
    return (void*)argument_begin[index];
}

void lab_access(const void* address, uint64_t size, uint32_t kind, int line) {
    if (kind == LAB_ATOMIC) {
        report->atomics++;
        acquired = true;
        if (++self->polls % POLLS == 0) wait(YIELDED);
    }
    if (level == LAB_OFF) return;
    u64 a = (u64)address, low = (size | 16) & -(size | 16);
    for (u64 at = 0; at < size; at += low) touch(a + at, (u32)low, kind, dynamic_site(line, kind, (u32)low));
}

void lab_fence() { released[block_number] = epoch; }

void lab_yield() { wait(YIELDED); }

void lab_copy_async(void* to, const void* from, uint64_t size, uint64_t zeros, int line) {
    Thread& t = *self;
    if (t.copy_count == t.copy_room) {
        t.copy_room = t.copy_room ? 2 * t.copy_room : 16;
        t.copies = (Copy*)realloc(t.copies, t.copy_room * sizeof(Copy));
    }
    t.copies[t.copy_count++] = Copy{to, from, (u32)size, (u32)zeros, line, t.copy_groups};
}

void lab_copy_commit() { self->copy_groups++; }

void lab_copy_wait(uint32_t groups) {
    // A copy arrives no earlier than it is waited for: who reads before finds the old bytes.
    Thread& t = *self;
    u32 kept = 0;
    for (u32 i = 0; i < t.copy_count; ++i) {
        Copy c = t.copies[i];
        if (c.group + groups >= t.copy_groups) {
            t.copies[kept++] = c;
            continue;
        }
        lab_access(c.from, c.size - c.zeros, LAB_READ, c.line);
        lab_access(c.to, c.size, LAB_WRITE, c.line);
        memcpy(c.to, c.from, c.size - c.zeros);
        memset((u8*)c.to + (c.size - c.zeros), 0, c.zeros);
    }
    t.copy_count = kept;
}

int lab_printf(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    u32 left = LAB_MAX_TEXT - report->text;
    int n = vsnprintf(report->printed + report->text, left, format, arguments);
    va_end(arguments);
    if (n > 0) report->text += least((u32)n, left ? left - 1 : 0);
    return n;
}

void lab_absent_source(uint32_t lane, uint32_t source, int line) {
    Thread* before = self;
    self = &thread[mine->first + lane];
    LabFinding* f = found(LAB_ABSENT_SOURCE, (u32)line, LAB_READ, source, LAB_NO_OBJECT, 0);
    put_text(f, self->what);
    self = before;
    stop(f);
}

void lab_overrun(const void* array, int64_t index, uint64_t length, const char* name, int line) {
    if (array && (u64)array - (u64)stacks >= stack_span) return;
    LabFinding* f = found(LAB_ARRAY_OUT_OF_BOUNDS, (u32)line, LAB_READ, (u32)length, LAB_NO_OBJECT, index);
    put_text(f, name);
    stop(f);
}

void lab_assertion(const char* text, int line) {
    LabFinding* f = found(LAB_ASSERTION, (u32)line, LAB_READ, 0, LAB_NO_OBJECT, 0);
    put_text(f, text);
    stop(f);
}

void lab_misuse(const char* text, int line) {
    LabFinding* f = found(LAB_MISUSE, (u32)line, LAB_READ, 0, LAB_NO_OBJECT, 0);
    put_text(f, text);
    stop(f);
}

// the compiler's calls: address first, the number of the site in the fourth argument's register

#define LAB_SIZED(N)                                                                                         \
    LAB_API void __tsan_read##N(void* p, long, long, u32 s) { touch((u64)p, N, LAB_READ, s); }               \
    LAB_API void __tsan_write##N(void* p, long, long, u32 s) { touch((u64)p, N, LAB_WRITE, s); }             \
    LAB_API void __tsan_unaligned_read##N(void* p, long, long, u32 s) { touch((u64)p, N, LAB_READ, s); }     \
    LAB_API void __tsan_unaligned_write##N(void* p, long, long, u32 s) { touch((u64)p, N, LAB_WRITE, s); }   \
    LAB_API void __tsan_volatile_read##N(void* p, long, long, u32 s) { touch((u64)p, N, LAB_READ, s); }      \
    LAB_API void __tsan_volatile_write##N(void* p, long, long, u32 s) { touch((u64)p, N, LAB_WRITE, s); }    \
    LAB_API void __tsan_read##N##_pc(void* p, long, long, u32 s) { touch((u64)p, N, LAB_READ, s); }          \
    LAB_API void __tsan_write##N##_pc(void* p, long, long, u32 s) { touch((u64)p, N, LAB_WRITE, s); }        \
    LAB_API void __tsan_read_write##N(void* p, long, long, u32 s) {                                          \
        touch((u64)p, N, LAB_READ, s);                                                                       \
        touch((u64)p, N, LAB_WRITE, s);                                                                      \
    }
LAB_SIZED(1)
LAB_SIZED(2)
LAB_SIZED(4)
LAB_SIZED(8)
LAB_SIZED(16)

LAB_API void __tsan_read_range(void* p, u64 n, long, u32 s) { touch_range((u64)p, n, LAB_READ, s); }
LAB_API void __tsan_write_range(void* p, u64 n, long, u32 s) { touch_range((u64)p, n, LAB_WRITE, s); }
LAB_API void* lab_memcpy(void* to, const void* from, u64 n, u32 s) {
    touch_range((u64)from, n, LAB_READ, s);
    touch_range((u64)to, n, LAB_WRITE, s + 1);
    return memcpy(to, from, n);
}
LAB_API void* lab_memmove(void* to, const void* from, u64 n, u32 s) {
    touch_range((u64)from, n, LAB_READ, s);
    touch_range((u64)to, n, LAB_WRITE, s + 1);
    return memmove(to, from, n);
}
LAB_API void* lab_memset(void* to, int value, u64 n, u32 s) {
    touch_range((u64)to, n, LAB_WRITE, s);
    return memset(to, value, n);
}
LAB_API void __tsan_init() {}
LAB_API void __tsan_func_entry(void*) {}
LAB_API void __tsan_func_exit() {}

// Python's calls

__attribute__((visibility("default"))) uint32_t lab_layout() { return (u32)(sizeof(LabLaunch) + sizeof(LabReport)); }

// Copy the buffers in and start the kernel in a child process. launch->child is its number, or -1; the pipe
// closes when it ends.
__attribute__((visibility("default"))) void lab_start(LabLaunch* l) {
    launch = l;
    u64 at = GAP;
    for (u32 i = 0; i < l->buffers; ++i) {
        l->buffer[i].begin = at;
        at = (at + l->buffer[i].size + GAP + 255) / 256 * 256;
    }
    l->arena_size = at;
    l->child = -1;
    l->report = nullptr;
    l->arena = nullptr;
    if (at >= 1ull << 32) return;
    int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE;
    void* arena = mmap(nullptr, at, PROT_READ | PROT_WRITE, flags, -1, 0);
    void* area = mmap(nullptr, sizeof(LabReport), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (arena == MAP_FAILED || area == MAP_FAILED) return;
    l->arena = arena;
    l->report = report = (LabReport*)area;
    global = (u8*)arena, global_span = at;
    for (u32 i = 0; i < l->buffers; ++i) memcpy(global + l->buffer[i].begin, l->buffer[i].host, l->buffer[i].size);
    for (u32 i = 0; i < l->pointers; ++i)
        *(void**)l->values[l->pointer[i].argument] = global + l->buffer[l->pointer[i].buffer].begin + l->pointer[i].offset;
    int ends[2];
    if (pipe(ends)) return;
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
#if defined(__linux__)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
        alarm(4 * (unsigned)l->seconds + 20);  // Python is gone
        struct itimerval limit = {};
        limit.it_value.tv_sec = (time_t)l->seconds;
        limit.it_value.tv_usec = (suseconds_t)((l->seconds - (double)limit.it_value.tv_sec) * 1e6) + 1;
        static u8 room_for_signals[65536];
        stack_t other = {};
        other.ss_sp = room_for_signals, other.ss_size = sizeof(room_for_signals);
        sigaltstack(&other, nullptr);
        struct sigaction act = {};
        act.sa_sigaction = on_signal;
        act.sa_flags = SA_SIGINFO | SA_ONSTACK;
        const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGUSR1, SIGPROF};
        for (int s : signals) sigaction(s, &act, nullptr);
        signal(SIGALRM, SIG_DFL);
        signal(SIGINT, SIG_DFL);
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, nullptr);
        setitimer(ITIMER_PROF, &limit, nullptr);
        run();
        _exit(0);
    }
    close(ends[1]);
    if (child < 0) close(ends[0]);
    l->child = child;
    l->pipe = ends[0];
}

// Copy the buffers back, if asked, and give the memory back.
__attribute__((visibility("default"))) void lab_finish(LabLaunch* l, int copy) {
    if (copy)
        for (u32 i = 0; i < l->buffers; ++i)
            if (!l->buffer[i].constant) memcpy(l->buffer[i].host, (u8*)l->arena + l->buffer[i].begin, l->buffer[i].size);
    if (l->arena) munmap(l->arena, l->arena_size);
    if (l->report) munmap(l->report, sizeof(LabReport));
}
}
