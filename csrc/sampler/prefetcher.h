// Threads that draw batches ahead of their use. Plain C++: no torch, no Python.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "sampler/draw.h"

namespace ssept::sampler {

// Hands out batches first, first + 1, ... in order, whatever the number of threads that draw them.
// Batches in use and batches drawn ahead come from one pool, whose memory is reused.
class Prefetcher {
 public:
  // `table` must stay valid until this is closed or destroyed.
  Prefetcher(const SamplingTable& table, const DrawSettings& settings, uint64_t first,
             int64_t num_threads);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // The next batch, which goes back to the pool when its last owner lets go, on any thread and also
  // after this object is gone. Throws std::runtime_error once closed.
  std::shared_ptr<const Batch> next();

  // Ends the threads. Closing twice is fine.
  void close();

 private:
  // Survives the prefetcher as long as a batch is in use.
  struct Pool {
    std::mutex mutex;
    std::vector<std::unique_ptr<Batch>> free;
  };

  void work();

  const SamplingTable table_;
  const DrawSettings settings_;
  std::shared_ptr<Pool> pool_ = std::make_shared<Pool>();
  std::mutex mutex_;
  std::condition_variable drawn_, taken_;
  std::vector<std::unique_ptr<Batch>> ahead_;  // slot index % size holds batch `index`, when drawn
  uint64_t next_to_draw_, next_to_take_;
  bool closed_ = false;
  std::exception_ptr error_;  // of a thread that could not draw
  std::vector<std::thread> threads_;
};

}  // namespace ssept::sampler
