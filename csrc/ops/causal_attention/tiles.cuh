// What the forward and the backward kernels of `causal_attention` share. A block takes a tile of
// one sequence's and head's rows, 16 for each warp, through tiles of the rows they meet: queries
// through keys, or keys through queries. Scores and sums stay in registers.
#pragma once
#include <limits>

#include "cuda/async_copy.cuh"
#include "cuda/dropout.cuh"
#include "cuda/mma.cuh"
#include "cuda/sequences.cuh"
#include "cuda/shared_memory.h"
#include "ops/causal_attention/launch.h"

namespace ssept::cuda::attention {

constexpr int kWarpRows = 16;
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

template <class A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

constexpr int min_of(int x, int y) { return x < y ? x : y; }

// What every GPU since sm_80 lets a block have: sm_86, sm_89 and sm_120 no more than that. Two such
// blocks share a multiprocessor of sm_90.
constexpr size_t kMaxSharedBytes = 99 << 10;

// The sizes of tiles for heads of up to WIDTH features: what fits into shared memory and registers,
// of which a relative bias takes some.
template <class M, int WIDTH, bool BIASED>
struct Tiles {
  using Math = M;
  using T = typename M::Element;
  using A = Accumulator<T>;
  using Inputs = std::conditional_t<BIASED, CausalAttentionWithBias<T>, CausalAttention<T>>;
  static constexpr bool kBiased = BIASED;
  static constexpr int kWidth = WIDTH;
  static constexpr int kRowBytes = WIDTH * sizeof(T);
  static constexpr int kWarps = kRowBytes <= 512 ? 4 : kRowBytes <= 1024 ? 2 : 1;
  static constexpr int kThreads = kWarps * kWarpSize;
  // On a multiprocessor: leaves a thread all registers it can have.
  static constexpr int kMinBlocks = 65536 / 256 / kThreads;
  static constexpr int kRows = kWarps * kWarpRows;
  // Rows of the tiles that a tile of queries, or of keys, meets.
  static constexpr bool kIsDouble = sizeof(T) == 8;
  static constexpr int kKeys = kRowBytes > 512 || kIsDouble               ? 16
                               : kRowBytes > 256 || M::kIsExact || BIASED ? 32
                                                                          : 64;
  static constexpr int kQueries = kRowBytes > 256 || kIsDouble || BIASED ? 16 : 32;
  // Of the output's gradient: the next is copied while the last is read, or after it.
  static constexpr int kGradTiles = kRowBytes > 512 ? 1 : 2;
  // Rows in shared memory start 16 bytes further in the banks than the row above.
  static constexpr int kLd = WIDTH + 16 / sizeof(T);
  // How many features' sums fit into registers; other blocks compute the rest.
  static constexpr int kForwardSlice = min_of(WIDTH, 1024 / sizeof(A));
  static constexpr int kQueriesSlice = min_of(WIDTH, (M::kIsExact ? 512 : 1024) / sizeof(A));
  static constexpr int kKeysSlice = min_of(WIDTH, kIsDouble ? 32 : 128);
  // Shared memory of the forward kernel and of the two backward kernels.
  static constexpr size_t kLdBytes = kLd * sizeof(T);
  static constexpr size_t kForwardBytes = (kRows + 2 * kKeys) * kLdBytes;
  static constexpr size_t kBackwardQueriesBytes = 2 * (kRows + kKeys) * kLdBytes;
  // For the gradient of the relative bias, scores besides: in place of the keys, if nowhere else.
  static constexpr int kScoreLd = kKeys + 1;  // threads read diagonals from different banks
  static constexpr size_t kScoreBytes = kRows * kScoreLd * sizeof(A);
  static constexpr bool kScoresInKeys = kBackwardQueriesBytes + kScoreBytes > kMaxSharedBytes;
  static_assert(!kScoresInKeys || kScoreBytes <= kKeys * kLdBytes);
  static constexpr size_t kBackwardBiasBytes =
      kBackwardQueriesBytes + (kScoresInKeys ? 0 : kScoreBytes);
  static constexpr size_t kBackwardKeysBytes =
      (2 * kRows + (1 + kGradTiles) * kQueries) * kLdBytes + 2 * kQueries * sizeof(A);
  static_assert(kForwardBytes <= kMaxSharedBytes && kBackwardBiasBytes <= kMaxSharedBytes &&
                kBackwardKeysBytes <= kMaxSharedBytes);
};

// Blocks for each head that write zeros behind the last sequence. They come first, as they have
// the most to do where there is much spare capacity.
constexpr int kSpareBlocks = 16;

// The rows of a block: of one sequence, or behind the last.
struct Segment {
  int64_t q_begin, k_begin;
  int num_queries, num_keys;
  int first_tile, tile_step;  // the block's tiles; one, unless max_seqlen promised too little
  int head, slice;
  bool is_spare;

  // The block's part of `launch_tiles`.
  __device__ Segment(const CausalAttentionSizes& s, const int32_t* cu_seqlens_q,
                     const int32_t* cu_seqlens_k, int tiles_per_sequence)
      : head(blockIdx.y % s.num_heads),
        slice(blockIdx.y / s.num_heads),
        is_spare(blockIdx.x < kSpareBlocks) {
    const int64_t x = static_cast<int64_t>(blockIdx.x) - kSpareBlocks;
    const int64_t b = x / tiles_per_sequence;
    first_tile = static_cast<int>(is_spare ? blockIdx.x : x % tiles_per_sequence);
    tile_step = is_spare ? kSpareBlocks : tiles_per_sequence;
    const Sequences queries(cu_seqlens_q, s.num_sequences, s.num_queries);
    const Sequences keys(cu_seqlens_k, s.num_sequences, s.num_keys);
    q_begin = is_spare ? queries.num_real() : queries.begin(b);
    k_begin = is_spare ? keys.num_real() : keys.begin(b);
    num_queries = static_cast<int>((is_spare ? s.num_queries : queries.end(b)) - q_begin);
    num_keys = static_cast<int>((is_spare ? s.num_keys : keys.end(b)) - k_begin);
  }

  // Of tiles of queries: the last see the most keys, so begin with them; spare ones see none.
  __device__ void order_queries() {
    if (is_spare)
      num_keys = 0;
    else
      first_tile = tile_step - 1 - first_tile;
  }

  // A query sees the keys below shift() + its own index + 1.
  __device__ int shift() const { return num_keys - num_queries; }
};

// A tile of queries, from query q0 of its segment on, and one warp's part of it.
struct QueryTile {
  int num_rows, num_keys;                 // num_keys: those that its last query sees
  int first_query, warp_rows, warp_keys;  // of the warp
  int64_t entry[2];                       // of a lane's queries, in lse and in the dropout mask

  __device__ __forceinline__ QueryTile(const Segment& segment, int64_t num_heads, int64_t q0,
                                       int max_rows, int warp_row)
      : num_rows(static_cast<int>(min(int64_t{max_rows}, segment.num_queries - q0))),
        num_keys(max(0, segment.shift() + static_cast<int>(q0) + num_rows)),
        first_query(static_cast<int>(q0) + warp_row),
        warp_rows(max(0, min(kWarpRows, num_rows - warp_row))),
        warp_keys(warp_rows == 0 ? 0 : max(0, segment.shift() + first_query + warp_rows)) {
    entry[0] = (segment.q_begin + first_query + lane_row()) * num_heads + segment.head;
    entry[1] = entry[0] + 8 * num_heads;
  }
};

// What turns a product of a query and a key into a weight: 2^(factor · product - ...), dropped or
// scaled.
template <class A>
struct Weighting {
  A factor, kept_scale;
  bool drops;
  DropoutMask dropout;

  // Where the products have become scores already, their factor is 1.
  template <class T>
  __device__ __forceinline__ explicit Weighting(const CausalAttention<T>& in,
                                                bool of_scores = false)
      : factor(of_scores ? A(1) : static_cast<A>(in.size.scale * kLog2E)),
        kept_scale(static_cast<A>(in.dropout.scale)),
        drops(in.dropout.seed != nullptr),
        dropout(in.dropout) {}
};

inline int64_t tiles_per_sequence(int64_t max_seqlen, int rows) {
  return max_seqlen > 0 ? (max_seqlen - 1) / rows + 1 : 1;
}
inline int64_t blocks_of_tiles(const CausalAttentionSizes& s, int64_t max_seqlen, int rows) {
  return kSpareBlocks + s.num_sequences * tiles_per_sequence(max_seqlen, rows);
}

// Launches `kernel` for all tiles of `rows` rows in sequences of up to max_seqlen, and for all
// slices of `slice` features; its last argument is the number of tiles in a sequence.
template <class Kernel, class... Args>
cudaError_t launch_tiles(const char* op, Kernel kernel, const CausalAttentionSizes& s,
                         int64_t max_seqlen, int rows, int slice, int threads, size_t smem,
                         cudaStream_t stream, Args... args) {
  const int64_t slices = (s.head_size - 1) / slice + 1;
  const int64_t tiles = tiles_per_sequence(max_seqlen, rows);
  const int64_t x = blocks_of_tiles(s, max_seqlen, rows), y = s.num_heads * slices;
  if (y == 0) return cudaSuccess;
  if (tiles > INT32_MAX || x > INT32_MAX || y > 65535) return cudaErrorInvalidConfiguration;
  const cudaError_t error = allow_shared_memory(reinterpret_cast<const void*>(kernel), op, smem);
  if (error != cudaSuccess) return error;
  return launch(kernel, dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)), threads, smem,
                stream, args..., static_cast<int>(tiles));
}

// The most bytes one copy can move, of heads that begin at these addresses and at all multiples of
// their size.
template <class T, class... Heads>
int bytes_per_copy(int64_t head_size, const Heads*... heads) {
  const uintptr_t bits = (static_cast<uintptr_t>(16 | head_size * sizeof(T)) | ... |
                          reinterpret_cast<uintptr_t>(heads));
  return static_cast<int>(bits & -bits);
}

// Calls f.template operator()<VEC>() for copies of VEC elements.
template <class T, class F>
__device__ __forceinline__ void for_copies_of(int bytes, F&& f) {
  if (bytes == 16) return f.template operator()<16 / sizeof(T)>();
  if (bytes == 8) return f.template operator()<8 / sizeof(T)>();
  if constexpr (sizeof(T) <= 4)
    if (bytes == 4) return f.template operator()<4 / sizeof(T)>();
  if constexpr (sizeof(T) == 2) return f.template operator()<1>();
}

// Lanes next to each other that copy a row of WIDTH elements, VEC at a time.
template <int WIDTH, int VEC>
__host__ __device__ constexpr int lanes_per_row() {
  int lanes = 1;
  while (lanes < kWarpSize && lanes * VEC < WIDTH) lanes *= 2;
  return lanes;
}

// How heads lie in memory.
struct Heads {
  int64_t row;  // elements from one token to the next
  int size;
  int copy_bytes;  // of `bytes_per_copy`
};

// Starts to copy heads to a tile's ROWS rows. Those from `num_rows` on become zeros.
template <int ROWS, int WIDTH, int LD, int THREADS, class T>
__device__ __forceinline__ void load_tile(T* tile, const T* from, int num_rows,
                                          const Heads& heads) {
  for_copies_of<T>(heads.copy_bytes, [&]<int VEC>() {
    constexpr int kLanes = lanes_per_row<WIDTH, VEC>();
    for (int r = threadIdx.x / kLanes; r < ROWS; r += THREADS / kLanes)
      for (int i = threadIdx.x % kLanes * VEC; i < heads.size; i += kLanes * VEC) {
        T* to = tile + r * LD + i;
        if (r < num_rows)
          copy_async<VEC>(to, from + r * heads.row + i);
        else
          *reinterpret_cast<Pack<T, VEC>*>(to) = Pack<T, VEC>{};
      }
  });
}

// Zeros for the features that a tile has and heads do not.
template <int WIDTH, int LD, int THREADS, class T>
__device__ __forceinline__ void clear_padding(T* tile, int num_rows, int head_size) {
  const int padding = WIDTH - head_size;
  for (int i = threadIdx.x; i < num_rows * padding; i += THREADS)
    tile[i / padding * LD + head_size + i % padding] = narrow<T>(0);
}

// Calls f.template operator()<VEC>(r, i) for all packs of VEC features that a warp's rows have,
// from feature i of row r on.
template <int SLICE, class T, class F>
__device__ __forceinline__ void for_packs_of(const Heads& heads, int num_rows, int num_features,
                                             F&& f) {
  for_copies_of<T>(heads.copy_bytes, [&]<int VEC>() {
    constexpr int kLanes = lanes_per_row<SLICE, VEC>();
    for (int r = lane_index() / kLanes; r < num_rows; r += kWarpSize / kLanes)
      for (int i = lane_index() % kLanes * VEC; i < num_features; i += kLanes * VEC)
        f.template operator()<VEC>(r, i);
  });
}

// Writes factor[0] and factor[1] times a warp's sums to heads, through the 16 rows of shared memory
// `stage` that only this warp uses.
template <int SLICE, int LD, class T, class A>
__device__ __forceinline__ void store_sums(const Sums<A> (&sums)[SLICE / 8], const A (&factor)[2],
                                           T* stage, T* to, int num_rows, int num_features,
                                           const Heads& heads) {
  __syncwarp();  // all lanes have read what lies there
#pragma unroll
  for (int j = 0; j < SLICE / 8; ++j)
#pragma unroll
    for (int r = 0; r < 2; ++r)
      *reinterpret_cast<Pack<T, 2>*>(stage + (lane_row() + 8 * r) * LD + j * 8 + lane_column()) = {
          {narrow<T>(factor[r] * sums[j].x[2 * r]), narrow<T>(factor[r] * sums[j].x[2 * r + 1])}};
  __syncwarp();
  for_packs_of<SLICE, T>(heads, num_rows, num_features, [&]<int VEC>(int r, int i) {
    *reinterpret_cast<Pack<T, VEC>*>(to + r * heads.row + i) =
        *reinterpret_cast<const Pack<T, VEC>*>(stage + r * LD + i);
  });
}

// A warp's 16 rows as left operands: kept in registers where they take up to KEPT_BYTES, else read
// again.
template <class M, int WIDTH, int LD, int KEPT_BYTES>
class OwnRows {
 public:
  using T = typename M::Element;
  static constexpr int kSteps = WIDTH / M::kDepth;
  static constexpr bool kKept = kSteps * sizeof(typename M::Left) <= KEPT_BYTES;

  __device__ __forceinline__ explicit OwnRows(const T* rows) : rows_(rows) {}

  // To be called when the rows are there.
  __device__ __forceinline__ void fetch() {
    if constexpr (kKept)
#pragma unroll
      for (int k = 0; k < kSteps; ++k) kept_[k] = M::template left<LD>(rows_ + k * M::kDepth);
  }

  __device__ __forceinline__ typename M::Left operator[](int k) const {
    if constexpr (kKept)
      return kept_[k];
    else
      return M::template left<LD>(rows_ + k * M::kDepth);
  }

 private:
  const T* rows_;
  typename M::Left kept_[kKept ? kSteps : 1];
};

// The products of a warp's rows and COLUMNS rows of a tile.
template <class M, int WIDTH, int LD, int COLUMNS, class Own, class A>
__device__ __forceinline__ void multiply_rows(Sums<A> (&products)[COLUMNS / 8], const Own& own,
                                              const typename M::Element* tile) {
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j) products[j] = {};
#pragma unroll(M::kUnroll)
  for (int k = 0; k < WIDTH / M::kDepth; ++k) {
    const auto left = own[k];
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j += 2) {
      typename M::Right right[2];
      M::template right<LD>(right, tile + j * 8 * LD + k * M::kDepth);
      M::multiply(products[j], left, right[0]);
      M::multiply(products[j + 1], left, right[1]);
    }
  }
}

// sums += weights · rows of a tile, SLICE features of them.
template <class M, int SLICE, int LD, int COLUMNS, class A>
__device__ __forceinline__ void add_weighted_rows(Sums<A> (&sums)[SLICE / 8],
                                                  const Sums<A> (&weights)[COLUMNS / 8],
                                                  const typename M::Element* tile) {
#pragma unroll
  for (int k = 0; k < COLUMNS / M::kDepth; ++k) {
    const auto left = M::left(weights + k * M::kDepth / 8);
#pragma unroll
    for (int j = 0; j < SLICE / 8; j += 2) {
      typename M::Right right[2];
      M::template right_of_rows<LD>(right, tile + k * M::kDepth * LD + j * 8);
      M::multiply(sums[j], left, right[0]);
      M::multiply(sums[j + 1], left, right[1]);
    }
  }
}

// The sum, or the maximum, over the lanes that hold parts of the same row.
template <class A>
__device__ __forceinline__ A row_sum(A x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}
template <class A>
__device__ __forceinline__ A row_max(A x) {
  x = max(x, __shfl_xor_sync(kAllLanes, x, 1));
  return max(x, __shfl_xor_sync(kAllLanes, x, 2));
}

__device__ __forceinline__ unsigned kept_bits(const DropoutMask& mask, int64_t row, int column) {
  const KeepFour four = mask.quad(row, static_cast<uint32_t>(column) / 4);
  return four.keep[0] | four.keep[1] << 1 | four.keep[2] << 2 | four.keep[3] << 3;
}

// Bit e says whether dropout keeps element e of a lane's sums, whose rows are the mask's rows
// row[0] and row[1] and whose 8 columns begin with `column`. Lanes that need the same four bits
// share the work.
__device__ __forceinline__ unsigned kept_by_rows(const DropoutMask& mask, const int64_t (&row)[2],
                                                 int column) {
  const int odd = lane_index() % 2;
  unsigned bits = kept_bits(mask, odd ? row[1] : row[0], column + lane_column() / 4 * 4) << 4 * odd;
  bits = (bits | __shfl_xor_sync(kAllLanes, bits, 1)) >> 2 * odd;
  return (bits & 3) | (bits >> 2 & 12);
}

// The same of sums whose 16 rows are the mask's columns from `column` on; first_row is the mask's
// row of their first column, row_step leads to the next.
__device__ __forceinline__ unsigned kept_by_columns(const DropoutMask& mask, int64_t first_row,
                                                    int64_t row_step, int column) {
  const int part = lane_row() % 4;
  const int64_t row = first_row + (lane_column() + part % 2) * row_step;
  unsigned bits = kept_bits(mask, row, column + part / 2 * 8 + lane_row() / 4 * 4) << 4 * part;
  bits |= __shfl_xor_sync(kAllLanes, bits, 4);
  bits = (bits | __shfl_xor_sync(kAllLanes, bits, 8)) >> part;
  return (bits & 1) | (bits >> 3 & 2) | (bits >> 6 & 4) | (bits >> 9 & 8);
}

// What computes products of T. kTf32: by tensor cores, from floats rounded to 10 bits.
template <class T, bool kTf32>
using Arithmetic = std::conditional_t<kTf32 || sizeof(T) == 2, TensorCores<T>, Exact<T>>;

// Calls f.template operator()<Tiles>() for the narrowest tiles that hold a head. With a bias, of
// fewer widths: each takes long to compile.
template <class M, bool BIASED, class F>
cudaError_t with_tiles(int64_t head_size, F&& f) {
  if constexpr (!BIASED)
    if (head_size <= 32) return f.template operator()<Tiles<M, 32, BIASED>>();
  if (head_size <= 64) return f.template operator()<Tiles<M, 64, BIASED>>();
  if (head_size <= 128) return f.template operator()<Tiles<M, 128, BIASED>>();
  if constexpr (!BIASED && kMaxHeadSize<typename M::Element> > 128)
    return f.template operator()<Tiles<M, 256, BIASED>>();
  return cudaErrorInvalidValue;
}
template <class M, class T, class F>
cudaError_t with_tiles_for(const CausalAttentionWithBias<T>& in, F&& f) {
  return has_bias(in.bias) ? with_tiles<M, true>(in.size.head_size, f)
                           : with_tiles<M, false>(in.size.head_size, f);
}

}  // namespace ssept::cuda::attention
