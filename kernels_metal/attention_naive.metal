// Causal attention: out[h][i] = sum over j <= i of w_j v[h][j], where w is the softmax over j <= i
// of scale (q[h][i] . k[h][j]).
//
// Shapes   q, k, v, out: (heads, n, d) float32; d at most 128.
// CPU      for each head h and row i:
//              for (int j = 0; j <= i; ++j) score[j] = scale * dot(q[h][i], k[h][j], d);
//              softmax(score, i + 1);
//              for (int c = 0; c < d; ++c)
//                  for (int j = 0; j <= i; ++j) out[h][i][c] += score[j] * v[h][j][c];
// Elements a head, 4 bytes each: n d of q read, n (n + 1) / 2 d of k and as many of v, since each
//          row reads all that it sees; n d of out written.
// Grid     (n, heads) threadgroups of 128: one row each; three barriers, in attention_naive four.
//
// version           sectors of k  scores                      what it changes
// attention_global  8 x ideal     n (n + 1) / 2 (3 + d)       a thread a key; scores lie where the
//                                 elements of device memory   CPU has them: written, made weights
//                                 a head                      (read, written), read by d threads
// attention_naive   ideal         4 n bytes of threadgroup    scores never leave the threadgroup; a
//                                 memory                      simdgroup a key: its lanes read a row
//                                                             of k side by side
//
// The row of scores is what bounds n: a threadgroup has 32 KiB, which hold some 7900.
// flash_attention.metal does without it, and reads k and v once for many rows.
//
// Source: Vaswani et al., "Attention Is All You Need" (2017), section 3.2.1. Not yet run on a Mac.

#include <metal_stdlib>
using namespace metal;

constant constexpr float LOWEST = -FLT_MAX / 2;  // no infinity: fast math may rely on that

// A thread's place among the lanes and simdgroups of its threadgroup.
struct Place {
    uint lane, simdgroup, simdgroups;
};

// The threadgroup's maximum and sum, in every thread; `partial` has an element a simdgroup.
float threadgroup_max(float value, threadgroup float* partial, Place at) {
    value = simd_max(value);
    if (at.lane == 0) partial[at.simdgroup] = value;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_max(at.lane < at.simdgroups ? partial[at.lane] : LOWEST);
}

float threadgroup_sum(float value, threadgroup float* partial, Place at) {
    value = simd_sum(value);
    if (at.lane == 0) partial[at.simdgroup] = value;
    // The weights lie in device memory in one version, in threadgroup memory in the other.
    threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
    return simd_sum(at.lane < at.simdgroups ? partial[at.lane] : 0.0f);
}

// scores: (heads, n, n), of which the lower triangle is used.
kernel void attention_global(device const float* q [[buffer(0)]],
                             device const float* k [[buffer(1)]],
                             device const float* v [[buffer(2)]],
                             device float* scores [[buffer(3)]], device float* out [[buffer(4)]],
                             constant uint& n [[buffer(5)]], constant uint& d [[buffer(6)]],
                             constant float& scale [[buffer(7)]],
                             uint2 group [[threadgroup_position_in_grid]],
                             uint2 size [[threads_per_threadgroup]],
                             uint first [[thread_index_in_threadgroup]],
                             uint lane [[thread_index_in_simdgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]],
                             uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float query[128], maxima[32], sums[32];
    uint i = group.x, head = group.y;
    Place at = {lane, simdgroup, simdgroups};
    k += head * n * d, v += head * n * d;
    device float* score = scores + (head * n + i) * n;
    for (uint c = first; c < d; c += size.x) query[c] = q[(head * n + i) * d + c];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float highest = LOWEST, sum = 0;
    for (uint j = first; j <= i; j += size.x) {
        float product = 0;
        for (uint c = 0; c < d; ++c) product += query[c] * k[j * d + c];
        score[j] = product * scale;
        highest = max(highest, product * scale);
    }
    highest = threadgroup_max(highest, maxima, at);
    for (uint j = first; j <= i; j += size.x) {
        float weight = exp(score[j] - highest);
        score[j] = weight;
        sum += weight;
    }
    sum = threadgroup_sum(sum, sums, at);  // its barrier also makes the weights visible
    for (uint c = first; c < d; c += size.x) {
        float mixed = 0;
        for (uint j = 0; j <= i; ++j) mixed += score[j] * v[j * d + c];
        out[(head * n + i) * d + c] = mixed / sum;
    }
}

kernel void attention_naive(device const float* q [[buffer(0)]],
                            device const float* k [[buffer(1)]],
                            device const float* v [[buffer(2)]], device float* out [[buffer(3)]],
                            constant uint& n [[buffer(4)]], constant uint& d [[buffer(5)]],
                            constant float& scale [[buffer(6)]],
                            threadgroup float* score [[threadgroup(0)]],  // n elements
                            uint2 group [[threadgroup_position_in_grid]],
                            uint2 size [[threads_per_threadgroup]],
                            uint first [[thread_index_in_threadgroup]],
                            uint lane [[thread_index_in_simdgroup]],
                            uint simdgroup [[simdgroup_index_in_threadgroup]],
                            uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float query[128], maxima[32], sums[32];
    uint i = group.x, head = group.y;
    Place at = {lane, simdgroup, simdgroups};
    k += head * n * d, v += head * n * d;
    for (uint c = first; c < d; c += size.x) query[c] = q[(head * n + i) * d + c];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint j = simdgroup; j <= i; j += simdgroups) {
        float product = 0;
        for (uint c = lane; c < d; c += 32) product += query[c] * k[j * d + c];
        product = simd_sum(product);
        if (lane == 0) score[j] = product * scale;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float highest = LOWEST, sum = 0;
    for (uint j = first; j <= i; j += size.x) highest = max(highest, score[j]);
    highest = threadgroup_max(highest, maxima, at);
    for (uint j = first; j <= i; j += size.x) {
        float weight = exp(score[j] - highest);
        score[j] = weight;
        sum += weight;
    }
    sum = threadgroup_sum(sum, sums, at);
    for (uint c = first; c < d; c += size.x) {
        float mixed = 0;
        for (uint j = 0; j <= i; ++j) mixed += score[j] * v[j * d + c];
        out[(head * n + i) * d + c] = mixed / sum;
    }
}
