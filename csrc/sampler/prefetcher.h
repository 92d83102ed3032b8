// Threads that draw batches ahead of their use. Plain C++: no torch, no Python.
#pragma once
#include <unistd.h>

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
  // `table` must stay valid until this is closed or destroyed. Throws std::runtime_error if not all
  // threads can be started.
  Prefetcher(const SamplingTable& table, const DrawSettings& settings, uint64_t first,
             int64_t num_threads);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // The next batch, which goes back to the pool when its last owner lets go, on any thread and also
  // after this object is gone. Throws std::runtime_error once closed.
  std::shared_ptr<const Batch> next();

  // Ends the threads. Closing twice is fine, also at the same time.
  void close();

  // Whether this process was forked from the one that made this. It has none of the threads, and
  // locks as they were then: it must not call, nor destroy, anything here.
  bool is_foreign() const { return pool_->process != getpid(); }

 private:
  // Survives the prefetcher as long as a batch is in use.
  struct Pool {
    const pid_t process = getpid();
    std::mutex mutex;
    std::vector<std::unique_ptr<Batch>> free;
  };

  void work();

  const SamplingTable table_;
  const DrawSettings settings_;
  std::shared_ptr<Pool> pool_ = std::make_shared<Pool>();
  std::mutex mutex_, closing_;
  std::condition_variable drawn_, taken_;
  std::vector<std::unique_ptr<Batch>> ahead_;  // slot index % size holds batch `index`, when drawn
  uint64_t next_to_draw_, next_to_take_;
  bool closed_ = false;
  std::exception_ptr error_;  // of a thread that could not draw
  std::vector<std::thread> threads_;
};

}  // namespace ssept::sampler
