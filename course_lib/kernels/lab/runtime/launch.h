// What Python passes to the runtime and gets back: plain structs, mirrored in course_lib/kernels/lab/native.py.
#pragma once
#include <stdint.h>

enum LabLevel : uint32_t { LAB_OFF = 0, LAB_BOUNDS = 1, LAB_COUNTS = 2, LAB_RACES = 3 };

// The order is that of `KINDS` in findings.py.
enum LabFindingKind : uint32_t {
    LAB_OUT_OF_BOUNDS,
    LAB_SHARED_OUT_OF_BOUNDS,
    LAB_NULL,
    LAB_WILD,
    LAB_MISALIGNED,
    LAB_UNINITIALIZED,
    LAB_RACE,
    LAB_DIVERGENT_BARRIER,
    LAB_MISSING_BARRIER,
    LAB_ABSENT_LANES,
    LAB_ABSENT_SOURCE,
    LAB_ENDLESS,
    LAB_STACK_OVERFLOW,
    LAB_DIVISION,
    LAB_CRASH,
    LAB_ASSERTION,
    LAB_MISUSE,
    LAB_READ_ONLY,
    LAB_ARRAY_OUT_OF_BOUNDS,
};

constexpr uint32_t LAB_SHARED_OBJECT = 0x10000;  // objects from here on are shared arrays
constexpr uint32_t LAB_NO_OBJECT = 0xffffffff;
constexpr uint32_t LAB_MAX_FINDINGS = 64, LAB_MAX_STATS = 8192, LAB_MAX_SHARED = 64;
constexpr uint32_t LAB_MAX_TEXT = 65536, LAB_MAX_TRACE = 65536;

struct LabBuffer {
    void* host;
    uint64_t size;
    uint64_t begin;      // out: where it lies in the arena
    uint32_t constant;   // the kernel may not write it
    uint32_t reserved;
};

struct LabPointer {
    uint32_t argument, buffer;
    uint64_t offset;
};

struct LabPlace {
    uint32_t block[3], thread[3];
    uint32_t line, kind;  // kind: LabAccess
};

struct LabFinding {
    uint32_t kind, size;
    LabPlace here, other;
    uint32_t object, lanes;
    int64_t offset;  // bytes from the object's beginning, or the address itself
    char text[104];
};

struct LabStat {
    uint32_t line, object, kind, size;
    uint64_t requests, accesses, bytes, sectors, ideal_sectors, wavefronts, ideal_wavefronts;
};

struct LabSharedArray {
    char name[48];
    uint64_t size, begin;
    uint32_t line, dynamic;
};

struct LabTrace {
    uint32_t line, step, lane, object, kind, size;
    uint64_t offset;
};

struct LabReport {
    uint32_t finished, findings, stats, shared, text, traced;
    uint64_t barriers, warp_operations, atomics, shared_bytes, lost_stats;
    LabFinding finding[LAB_MAX_FINDINGS];
    LabSharedArray array[LAB_MAX_SHARED];
    LabStat stat[LAB_MAX_STATS];
    char printed[LAB_MAX_TEXT];
    LabTrace trace[LAB_MAX_TRACE];
};

struct LabLaunch {
    uint32_t grid[3], block[3];
    uint32_t threads[3];  // Metal's non-uniform grids: threads in all; 0 for whole blocks
    uint32_t warp_size, level, strict, sites, buffers, pointers, blocks, trace_warp;
    uint64_t shared_bytes, trace_block;
    double seconds;
    void (*call)(void** values);
    void** values;
    const uint32_t* site_lines;
    const uint32_t* order;  // the blocks, in the order in which they run
    LabBuffer* buffer;
    const LabPointer* pointer;
    const uint64_t* argument_bytes;  // Metal's threadgroup memory by [[threadgroup(i)]]
    uint32_t arguments, poison;
    LabReport* report;  // out
    int32_t child, pipe;
    void* arena;
    uint64_t arena_size;
};
