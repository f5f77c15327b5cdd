// The arithmetic of the engine: one table of functions per instruction set, chosen at run time.
//
// Weights come in groups of 16 output rows (the 16 int32 lanes of a 512-bit register). Integer products
// follow one definition that every instruction set and every batch size computes bit for bit:
//
//   x is cut into blocks of 64 columns b, each quantised to x_q in -16256 .. 16256, s_b = max|x| / 16256;
//   y[r] = row_scale[r] * fold over b, in order, of  f = fma(float(sum_k w_q[r][k] x_q[k]), s_b * t_b, f)
//
// where t_b is the table scale of block b (palette) or 1 (int8). Nothing else may be reordered, so a token's
// result does not depend on what else is in the batch.
//
// A fine block has 15 bits, x_q = 128 high + low (an exact split into two int8 passes of VNNI); a coarse one
// 8, x_q = 128 high, and the second pass is left out. Why not 8 bits for all: activations have outliers, and
// that costs a mean KL of 5e-3 to 1e-2 on SmolLM2-135M. A block is fine when its rounding error at 8 bits
// would exceed kCoarseError of the row's energy: about one block in three.
//
// Shape letters: M activation rows (tokens), N output rows, K input columns, D head dimension.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pomona {

inline constexpr int kGroupRows = 16;  // output rows of a group
inline constexpr int kBlock = 64;      // columns that share one activation scale
inline constexpr int kPageTokens = 16; // tokens of a KV page: the lanes of the score kernel
inline constexpr int kChunkPages =
    16; // pages of an attention chunk: softmax is folded chunk by chunk, always at
        // the same positions, so that splitting the work changes no bit
inline constexpr int kChunkTokens = kPageTokens * kChunkPages;

enum class Format { bf16, int8, palette };

// One weight matrix [rows, cols] and where its bytes lie (file mapping or arena; not owned).
//   bf16     data: row-major [rows][cols]
//   int8     data: [rows/16][cols/4][16 rows][4 columns], weight + 128;                 row_scales [rows]
//   palette  data: indices of `bits` bits, packed as palette_layout.h says;
//            tables [rows/16][cols/table_cols][2^bits], table_scales [rows/16][cols/table_cols], row_scales
//            [rows]
// The packed formats need a multiple of 16 rows and of 64 columns.
struct Matrix {
  Format format = Format::bf16;
  int rows = 0;
  int cols = 0;
  int table_cols = 0;
  int bits = 0; // of a palette's index: 4, 3 or 2
  const std::uint8_t* data = nullptr;
  const std::int8_t* tables = nullptr;
  const std::uint16_t* table_scales = nullptr; // float16
  const std::uint16_t* row_scales = nullptr;   // float16

  int groups() const { return (rows + kGroupRows - 1) / kGroupRows; }
  std::size_t group_bytes() const {
    return static_cast<std::size_t>(kGroupRows) * cols * (format == Format::palette ? bits : 8) / 8;
  }
  int colors() const { return 1 << bits; }
  int tables_of_group() const { return format == Format::palette ? cols / table_cols : 1; }
};

// M quantised activation rows. The 2 K bytes of a row are as its instruction set wants them: int16 [K], or
// int8 planes high [K] and low [K], low being zero in coarse blocks. offset = -sum of x_q of the block, for
// kernels that read weights as weight + 128: 128 offset makes up for it.
struct QuantRows {
  int rows = 0;
  int cols = 0;
  std::uint8_t* q = nullptr;      // [M][2 K], 64-byte aligned
  float* scale = nullptr;         // [M][K / 64]
  std::int32_t* offset = nullptr; // [M][K / 64]
  std::uint8_t* fine = nullptr;   // [M][K / 64]: 1 where the low plane is not all zero by definition

  int blocks() const { return cols / kBlock; }
};
inline constexpr float kQuantMax = 16256.0f; // 127 * 128
// A block is coarse while its squared rounding error at 8 bits, (128 s_b)^2 * 64 / 12, is at most this part
// of the row's sum of squares.
inline constexpr float kCoarseError = 5e-6f;

// The two factors of a low-rank adapter, bf16 or int8. Scales belong to int8 alone.
//   A  bf16 [lanes/16][K/2][16 lanes][2], int8 [lanes/16][K][16 lanes]; scales [units]
//   B  bf16 [N/16][rank/2][16 rows][2],   int8 [N/16][rank][16 rows];   scales [N/16]. The rank is even.
struct LowerFactor {
  Format format = Format::bf16;
  int lanes = 0; // a multiple of 16; 0: no projection of this input is adapted
  int cols = 0;
  const std::uint8_t* data = nullptr;
  const float* scales = nullptr;

  int segments() const { return (cols + kBlock - 1) / kBlock; }
  int units() const { return lanes / kGroupRows * segments(); }
};
struct RaiseFactor {
  Format format = Format::bf16;
  int rows = 0;
  int rank = 0; // 0: this projection is not adapted
  const std::uint8_t* data = nullptr;
  const float* scales = nullptr;
};

// Attention of several query rows that share one key/value head, over one chunk of at most 256 keys.
// A page holds 16 tokens of one layer and head, keys and then values:
//   bf16  keys [D/2][16 tokens][2], values [8 token pairs][D][2]
//   int8  keys [D/16] of {bf16 scales [16 tokens], [16 channels][16 tokens]}, values {bf16 scales [16
//   tokens],
//         [16 tokens][D]}
// Keys have channels that are many times the others: one scale per token and head costs them three times the
// divergence of one per 16 channels.
struct AttendArgs {
  Format format = Format::bf16;
  int rows = 0;                               // query rows
  int head_dim = 0;                           // D, a multiple of 16
  const float* q = nullptr;                   // [rows][D], already scaled by D^-1/2
  const std::uint8_t* const* pages = nullptr; // the pages of this chunk
  int tokens = 0;                             // keys of this chunk that exist
  const int* visible = nullptr;               // [rows]: how many of these keys the row may see (0 .. tokens)
  float* max = nullptr;                       // [rows] out: largest score
  float* sum = nullptr;                       // [rows] out: sum of exp(score - max)
  float* out = nullptr;                       // [rows][D] out: sum of exp(score - max) * value
};

inline constexpr int kKeyGroup = 16; // channels of a key that share one scale
// Bytes of a page's keys, and of the whole page, of one layer and head.
inline std::size_t key_bytes(Format format, int head_dim) {
  const std::size_t elements = static_cast<std::size_t>(kPageTokens) * head_dim;
  return format == Format::bf16 ? 2 * elements : elements + head_dim / kKeyGroup * 2 * kPageTokens;
}
inline std::size_t page_block_bytes(Format format, int head_dim) {
  const std::size_t elements = static_cast<std::size_t>(kPageTokens) * head_dim;
  const std::size_t values = format == Format::bf16 ? 2 * elements : elements + 2 * kPageTokens;
  return (key_bytes(format, head_dim) + values + 63) / 64 * 64;
}

struct Kernels {
  const char* name;

  // Row m of `rows` from x [K].
  void (*quantize)(const float* x, const QuantRows& rows, int m);

  // y[m][r] for the rows of groups [g0, g1); y points at row 0. scratch: 64-byte aligned, matmul_scratch(K)
  // bytes.
  void (*matmul_palette)(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
                         std::uint8_t* scratch);
  void (*matmul_int8)(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
                      std::uint8_t* scratch);
  // float32 activations (avx512_bf16 rounds them), bf16 weights, rows [r0, r1).
  void (*matmul_bf16)(const Matrix& w, int r0, int r1, const float* x, std::size_t x_stride, int m, float* y,
                      std::size_t y_stride);

  // A low-rank adapter: y += B (s * A x), s one factor per rank. In both halves 16 outputs are the lanes, so
  // a sum is never cut across lanes and every instruction set computes the same bits.
  //
  // First half. Lanes are the ranks of all projections that read x, in blocks of 16. Columns come in segments
  // of 64 (the last may be shorter); unit i is segment i % S of lane block i / S. A unit sums its even
  // columns and its odd columns by fma, in order, and adds both, times the unit's scale; u is the sum of its
  // segments, in order. out [m][segment * segment_stride + lane]; with segment_stride 0 the segments, which
  // must be all of a block, are added up.
  void (*lower)(const LowerFactor& a, int unit0, int unit1, const float* x, std::size_t x_stride, int m,
                float* out, std::size_t out_stride, std::size_t segment_stride);
  // Second half, rows of groups [g0, g1): y[m][r] += scale of the group * sum_j b[r][j] u[m][j], by fma, j in
  // order.
  void (*raise)(const RaiseFactor& b, int g0, int g1, const float* u, std::size_t u_stride, int m, float* y,
                std::size_t y_stride);

  void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* y); // y may be x
  void (*swiglu)(float* gate, const float* up, int n);                               // gate = silu(gate) * up
  void (*add)(float* x, const float* y, int n);                                      // x += y
  // Rotates the halves of one head: (a, b) -> (a cos - b sin, b cos + a sin). cos, sin: [D/2].
  void (*rope)(float* head, int head_dim, const float* cos, const float* sin);
  void (*attend)(const AttendArgs& args);
  // Folds a chunk's (max, sum, out) into the running one.
  void (*fold)(float* max, float* sum, float* out, float chunk_max, float chunk_sum, const float* chunk_out,
               int n);
  // Writes one token's key and value [D] into slot 0..15 of a page.
  void (*store_kv)(Format format, std::uint8_t* page, int slot, const float* k, const float* v, int head_dim);
  float (*log_sum_exp)(const float* x, int n);
  int (*argmax)(const float* x, int n); // the first of equals

  // c[i][j] += sum over t < k of a[i * a_row + t * a_step] * b[t * b_stride + j], by fma, t in order; i < m,
  // j < n.
  void (*multiply_add)(const float* a, std::size_t a_row, std::size_t a_step, const float* b,
                       std::size_t b_stride, int k, float* c, std::size_t c_stride, int m, int n);
  // index[r] = how many of the `count` middles lie below x[r], r < 16.
  void (*nearest)(const float* x, const float* middles, int count, std::uint8_t* index);
  // The first i of first .. last (at least one) with the least previous[i] + cost, and that in *best. The
  // cost is the weighted squared distance to their mean of the values from edge i to edge j, out of the sums
  // of weights w, of w * v and of w * v^2 at the edges; it is 0 without weight. Reads kCutLanes beyond
  // `last`.
  int (*cheapest_cut)(const double* previous, const double* weight, const double* value, const double* square,
                      int first, int last, int j, double* best);
};

inline constexpr int kCutLanes = 8;

// Bytes of scratch that one thread needs for matmuls over K columns: 64 unpacked rows and their table scales.
inline std::size_t matmul_scratch(int cols) { return static_cast<std::size_t>(65) * cols + 64; }

const Kernels& scalar_kernels();
// Each of these is built for one processor family, and gives nullptr where its file was compiled without its
// instructions.
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_bf16_kernels();
const Kernels* neon_kernels();
const Kernels* neon_dot_kernels();

// "auto" or a name; throws std::invalid_argument that lists what this machine can run.
const Kernels& select_kernels(const char* isa);
// Names that this machine can run and that compute the same bits, best first, separated by spaces; "auto" is
// the first.
const char* available_kernels();
// Names that this machine can run and that compute other bits, faster.
const char* rounding_kernels();

// Read bandwidth of `threads` threads streaming `bytes` bytes each from huge pages, in GB/s (1e9 bytes).
double measure_bandwidth(std::size_t bytes, int threads);

// y[r] of a palettised or int8 weight for tests and for embedding rows.
float weight_value(const Matrix& w, int row, int col);
void embedding_row(const Matrix& w, int row, float* out);

float half_to_float(std::uint16_t h);

} // namespace pomona
