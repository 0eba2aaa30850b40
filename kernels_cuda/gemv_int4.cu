// Matrix times vector with weights of 4 bits in groups of 32: y[r] = sum over groups g of
// scales[r][g] (sum over the group's columns c of (code[r][c] - 8) x[c]).
//
// Shapes   codes: (rows, columns / 2) uint8, column 2i in the low half of byte i and 2i + 1 in the
//          high half; scales: (rows, columns / 32) float32; x: (columns,) float32; y: (rows,)
//          float32. columns is a multiple of 32.
// CPU      for (int r = 0; r < rows; ++r) {
//              y[r] = 0;
//              for (int c = 0; c < columns; ++c) {
//                  int code = codes[(r * columns + c) / 2] >> (c % 2 * 4) & 15;
//                  y[r] += scales[(r * columns + c) / 32] * (code - 8) * x[c];
//              }
//          }
// Bytes    a weight: 1/2 for its code and 4/32 for its share of a scale, 5 bits in all; float16
//          has 16. Lanes that ask for the same scale share its sector.
// Grid     gemv_int4_naive ceil(rows / block); gemv_int4 ceil(rows / (4 block / 32)). Block a
//          multiple of 32, here 128.
//
// version          sectors of codes  x, bytes a weight  what it changes
// gemv_int4_naive  32 a request      4                  a row a thread: a sector of 32 bytes for
//                                                       each byte (rows of 32 bytes or more)
// gemv_int4        2 a request       1                  four rows a warp; a lane reads four codes
//                                                       in 2 bytes and four numbers of x in 16,
//                                                       so that both lie side by side
//
// Source: Frantar et al., "GPTQ" (2022), section 4; llama.cpp's Q4_0 for groups of 32 and the 8.

constexpr unsigned ALL = 0xffffffffu;
constexpr int GROUP = 32, EACH = 4;  // columns a scale; rows a warp

__global__ void gemv_int4_naive(const unsigned char* codes, const float* scales, const float* x,
                                float* y, int rows, int columns) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float sum = 0;
    for (int c = 0; c < columns; c += 2) {
        int pair = codes[(row * columns + c) / 2];
        float products = ((pair & 15) - 8) * x[c] + ((pair >> 4) - 8) * x[c + 1];
        sum += scales[(row * columns + c) / GROUP] * products;
    }
    y[row] = sum;
}

__device__ float warp_sum(float sum) {
    for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(ALL, sum, distance);
    return sum;  // in every lane
}

__global__ void gemv_int4(const unsigned char* codes, const float* scales, const float* x,
                          float* y, int rows, int columns) {
    int lane = threadIdx.x % 32, top = (blockIdx.x * blockDim.x + threadIdx.x) / 32 * EACH;
    float sum[EACH] = {};
    for (int c = 4 * lane; c < columns; c += 128) {
        float4 part = *reinterpret_cast<const float4*>(x + c);
        for (int r = 0; r < EACH && top + r < rows; ++r) {
            int place = (top + r) * columns + c;
            unsigned four = *reinterpret_cast<const unsigned short*>(codes + place / 2);
            float products = ((int)(four & 15) - 8) * part.x + ((int)(four >> 4 & 15) - 8) * part.y
                             + ((int)(four >> 8 & 15) - 8) * part.z
                             + ((int)(four >> 12) - 8) * part.w;
            sum[r] += scales[place / GROUP] * products;  // four columns never straddle a group
        }
    }
    for (int r = 0; r < EACH && top + r < rows; ++r) {  // the same for all lanes of a warp
        float total = warp_sum(sum[r]);
        if (lane == 0) y[top + r] = total;
    }
}
