#include "sampler/prefetcher.h"

#include <iterator>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

namespace ssept::sampler {

Prefetcher::Prefetcher(const SamplingTable& table, const DrawSettings& settings, uint64_t first,
                       int64_t num_threads)
    : table_(table),
      settings_(settings),
      ahead_(2 * num_threads),
      next_to_draw_(first),
      next_to_take_(first) {
  settings.check();
  if (num_threads < 1) throw std::invalid_argument("num_threads must be at least 1");
  try {
    while (std::ssize(threads_) < num_threads) threads_.emplace_back([this] { work(); });
  } catch (const std::system_error& error) {
    const std::string started = std::to_string(threads_.size());
    close();
    throw std::runtime_error("n_workers is " + std::to_string(num_threads) + ", but only " +
                             started + " threads could be started: " + error.what());
  }
}

Prefetcher::~Prefetcher() { close(); }

void Prefetcher::close() {
  const std::lock_guard closing(closing_);
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  drawn_.notify_all();
  taken_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void Prefetcher::work() {
  for (;;) {
    uint64_t index = 0;
    {
      std::unique_lock lock(mutex_);
      taken_.wait(lock, [&] { return closed_ || next_to_draw_ < next_to_take_ + ahead_.size(); });
      if (closed_) return;
      index = next_to_draw_++;
    }
    std::unique_ptr<Batch> batch;
    {
      const std::lock_guard lock(pool_->mutex);
      if (!pool_->free.empty()) {
        batch = std::move(pool_->free.back());
        pool_->free.pop_back();
      }
    }
    std::exception_ptr error;
    try {
      if (!batch) batch = std::make_unique<Batch>();
      draw(table_, settings_, index, *batch);
    } catch (...) {  // out of memory: told to whoever asks for a batch
      error = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      ahead_[index % ahead_.size()] = std::move(batch);
      if (error) error_ = error;
    }
    drawn_.notify_all();
  }
}

std::shared_ptr<const Batch> Prefetcher::next() {
  std::unique_ptr<Batch> batch;
  {
    std::unique_lock lock(mutex_);
    // Another thread may take a batch while this one waits.
    const auto slot = [&]() -> auto& { return ahead_[next_to_take_ % ahead_.size()]; };
    drawn_.wait(lock, [&] { return closed_ || error_ || slot(); });
    if (error_) std::rethrow_exception(error_);
    if (closed_) throw std::runtime_error("the sampler is closed");
    batch = std::move(slot());
    ++next_to_take_;
  }
  taken_.notify_all();
  return {batch.release(), [pool = pool_](const Batch* used) {
            if (pool->process != getpid()) return;  // whose mutex a forked child may find locked
            const std::lock_guard lock(pool->mutex);
            pool->free.emplace_back(const_cast<Batch*>(used));
          }};
}

}  // namespace ssept::sampler
