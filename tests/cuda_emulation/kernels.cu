// Small kernels for the tests of the emulator itself: correct ones, which must pass, and ones with
// a planted bug, which must be caught. All work on 256 floats. Python finds them by name and hands
// them to run().
#include <stdexcept>
#include <string>

#include "cuda/launch.cuh"

using ssept::cuda::group_sum;
using ssept::cuda::kAllLanes;

__device__ float block_sum(float value) {
  __shared__ float partial[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
  value = group_sum<32>(value);
  __syncthreads();  // the last call has read its sums
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  return group_sum<32>(lane < num_warps ? partial[lane] : 0.0f);
}

#pragma GCC visibility push(default)
extern "C" {

// Correct kernels.

__global__ void layer_norm(float* data) {
  float& x = data[blockIdx.x * blockDim.x + threadIdx.x];
  const float mean = block_sum(x) / blockDim.x;
  const float variance = block_sum((x - mean) * (x - mean)) / blockDim.x;
  x = (x - mean) * rsqrtf(variance);
}

__global__ void reverse_through_dynamic_shared(float* data) {
  float* copy = reinterpret_cast<float*>(smem_raw);
  copy[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  data[threadIdx.x] = copy[blockDim.x - 1 - threadIdx.x];
}

__global__ void reverse_within_warp(float* data) {
  __shared__ float copy[64];
  copy[threadIdx.x] = data[threadIdx.x];
  __syncwarp();
  data[threadIdx.x] = copy[threadIdx.x ^ 31];
}

__global__ void votes(float* data) {
  const int i = threadIdx.x;
  const bool even = i % 2 == 0;
  data[i] = __ballot_sync(kAllLanes, even) == 0x55555555u;
  data[64 + i] = __syncthreads_count(i < 5);
  data[128 + i] = __any_sync(kAllLanes, even) + 2 * __all_sync(kAllLanes, even) +
                  4 * __syncthreads_or(even) + 8 * __syncthreads_and(even);
}

__global__ void half_warp_sums(float* data) {
  const unsigned half = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
  float sum = threadIdx.x;
  for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_xor_sync(half, sum, offset, 16);
  data[threadIdx.x] = sum;
}

__global__ void shuffles_of_every_width(float* data) {
  const int i = threadIdx.x;
  data[i] = __half2float(__shfl_up_sync(kAllLanes, __int2half_rn(i), 2));
  data[64 + i] = __shfl_down_sync(kAllLanes, static_cast<float>(i), 2u, 8);
  const long long big = (1ll << 40) + i;
  data[128 + i] = __shfl_sync(kAllLanes, big, 7) - (1ll << 40);
  data[192 + i] = __shfl_xor_sync(kAllLanes, 0.5 + i, 1);
}

// Threads write bytes of the same words, which others wrote and read as a whole.
__global__ void bytes_of_words(float* data) {
  __shared__ unsigned long long words[8];
  const unsigned i = threadIdx.x;
  if (i < 8) words[i] = 0;
  __syncthreads();
  reinterpret_cast<unsigned char*>(words)[i] = i;
  __syncthreads();
  data[i] = words[i / 8] >> i % 8 * 8 & 0xff;
}

// On data of zeros. The last thread reports.
__global__ void atomics(float* data) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  float* sum = data + 16;
  auto* wide_sum = reinterpret_cast<double*>(data + 18);
  auto* largest = reinterpret_cast<int*>(data + 20);
  auto* smallest = reinterpret_cast<int*>(data + 21);
  auto* taken = reinterpret_cast<int*>(data + 22);
  auto* num_takers = reinterpret_cast<unsigned*>(data + 23);
  auto* compared = reinterpret_cast<unsigned long long*>(data + 24);
  auto* num_done = reinterpret_cast<unsigned*>(data + 26);

  atomicAdd(sum, 0.5f);
  atomicAdd(wide_sum, 0.25);
  atomicMax(largest, i);
  atomicMin(smallest, -i);
  if (atomicExch(taken, 1) == 0) atomicAdd(num_takers, 1u);
  unsigned long long seen = 0, expected;
  do {
    expected = seen;
    seen = atomicCAS(compared, expected, expected + (1ull << 33));
  } while (seen != expected);

  __threadfence();
  if (atomicAdd(num_done, 1u) + 1 < gridDim.x * blockDim.x) return;
  data[0] = atomicAdd(sum, 0.0f);
  data[1] = atomicAdd(wide_sum, 0.0);
  data[2] = atomicAdd(largest, 0);
  data[3] = atomicAdd(smallest, 0);
  data[4] = atomicAdd(num_takers, 0u);
  data[5] = atomicAdd(compared, 0ull) >> 33;
}

__global__ void some_threads_exit_early(float* data) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  data[threadIdx.x] = __shfl_sync(kAllLanes, static_cast<float>(threadIdx.x), 3);
}

__global__ void intrinsics(float* data) {
  data[0] = __umulhi(0x80000000u, 6);
  data[1] = rsqrt(16.0) + rsqrtf(4.0f);
  data[2] = __popc(0xf0u) + __ffs(8) + __clz(1);
  data[3] = __int_as_float(0x3f800000) + __uint_as_float(0x40000000u);
  data[4] = __float_as_int(1.0f) == 0x3f800000 && __float_as_uint(2.0f) == 0x40000000u;
  data[5] = min(3ll, 4ll) + max(5.0f, 6.5f);
  data[6] = __expf(0.0f) + __logf(1.0f) + __fdividef(1.0f, 4.0f) + fmaf(2.0f, 3.0f, 4.0f);
  data[7] = __ldg(&data[255]);
  data[8] = __bfloat162float(__float2bfloat16_rn(1.00390625f));
  __threadfence();
  __threadfence_block();
  __threadfence_system();
}

__global__ void finishing_order(float* data) {
  data[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(&data[255], 1.0f);
}

__global__ void shuffle_from_an_exited_lane(float* data) {
  if (threadIdx.x % 32 < 16) {
    data[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 16);
  }
}

// Kernels with a bug.

__global__ void missing_barrier(float* data) {
  __shared__ float copy[64];
  copy[threadIdx.x] = 0;
  __syncthreads();
  copy[threadIdx.x] = data[threadIdx.x];  // the write of the race
  __syncwarp();                           // does not help with the other warp
  if (threadIdx.x >= 32) {
    data[threadIdx.x] = copy[63 - threadIdx.x];  // the read of the race
  }
}

__global__ void missing_barrier_in_loop(float* data) {
  __shared__ float copy[64];
  for (int round = 0; round < 2; ++round) {
    copy[threadIdx.x] = data[threadIdx.x];
    __syncthreads();
    data[threadIdx.x] = copy[(threadIdx.x + 1) % 64];
  }
}

__global__ void missing_syncwarp(float* data) {
  __shared__ float copy[64];
  copy[threadIdx.x] = 0;
  __syncwarp();
  copy[threadIdx.x] = data[threadIdx.x];
  data[threadIdx.x] = copy[threadIdx.x & ~1u];
}

// In the middle of 2 KiB, on a page of the race detector where no other kernel's accesses were.
__global__ void read_of_a_part_of_a_word(float* data) {
  __shared__ unsigned long long words[256];
  if (threadIdx.x == 0) words[128] = 1;
  if (threadIdx.x == 32) data[0] = reinterpret_cast<unsigned char*>(&words[128])[3];
}

__global__ void read_of_a_word_with_an_unfinished_part(float* data) {
  __shared__ unsigned long long words[256];
  if (threadIdx.x == 32) words[128] = 0;
  __syncthreads();
  if (threadIdx.x == 0) reinterpret_cast<unsigned char*>(&words[128])[3] = 1;
  if (threadIdx.x == 32) data[0] = words[128];
}

__global__ void plain_sum_across_blocks(float* data) {
  if (threadIdx.x == 0) data[0] += 1;
}

__global__ void atomic_beside_plain_store(float* data) {
  if (threadIdx.x == 0) {
    data[0] = 0;
  } else {
    atomicAdd(&data[0], 1.0f);  // the atomic of the race
  }
}

__global__ void plain_read_beside_atomic(float* data) {
  if (threadIdx.x == 0) {
    atomicAdd(&data[0], 1.0f);
  } else {
    data[threadIdx.x] = data[0];
  }
}

__global__ void overwrite_while_others_read(float* data) {
  data[64 + threadIdx.x] = data[0];
  if (threadIdx.x == 1) data[0] = 1;
}

__global__ void uninitialised_shared(float* data) {
  __shared__ float half_written[64];
  if (threadIdx.x < 32) half_written[threadIdx.x] = 1;
  __syncthreads();
  data[threadIdx.x] = half_written[threadIdx.x];
}

__global__ void write_past_dynamic_shared(float*) {
  reinterpret_cast<float*>(smem_raw)[threadIdx.x + 1] = 1;
}

__global__ void read_past_dynamic_shared(float* data) {
  data[threadIdx.x] = reinterpret_cast<float*>(smem_raw)[blockDim.x];
}

__global__ void write_past_static_shared(float*) {
  __shared__ float array[64];
  array[threadIdx.x + 1] = 1;
}

__global__ void write_past_global(float* data) { data[threadIdx.x + 1] = 1; }

__global__ void misaligned_load(float* data) {
  const float4 four = *reinterpret_cast<const float4*>(data + 1);
  data[threadIdx.x] = four.x;
}

__global__ void divergent_barriers(float* data) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  data[threadIdx.x] = 1;
}

__global__ void divergent_collectives(float* data) {
  if (threadIdx.x < 16) {
    data[threadIdx.x] = __shfl_sync(kAllLanes, 1.0f, 0);
  } else {
    __syncwarp();
  }
}

__global__ void lane_outside_its_mask(float* data) {
  data[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 1);
}

__global__ void barrier_waits_for_shuffle(float* data) {
  if (threadIdx.x < 40) {
    data[threadIdx.x] = __shfl_sync(kAllLanes, 1.0f, 0);
  } else {
    __syncthreads();
  }
}

__global__ void trap(float*) { __trap(); }

}  // extern "C"

// Runs a kernel. Returns what went wrong, or "": no exception may reach ctypes.
extern "C" const char* run(void (*kernel)(float*), int blocks, int threads, int dynamic_bytes,
                           bool opt_in, float* data) {
  static std::string message;
  message.clear();
  try {
    if (opt_in) {
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic_bytes);
    }
    cudaLaunchConfig_t config{};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = dynamic_bytes;
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, data);
    if (error != cudaSuccess) message = cudaGetErrorString(cudaGetLastError());
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

extern "C" void copy_two_zeros(float* data) {
  void* memory = nullptr;
  cudaHostAlloc(&memory, 2 * sizeof(float), cudaHostAllocDefault);
  cudaMemsetAsync(memory, 0, 2 * sizeof(float), nullptr);
  cudaMemcpyAsync(data, memory, 2 * sizeof(float), cudaMemcpyDefault, nullptr);
  cudaFreeHost(memory);
}

#pragma GCC visibility pop
