// Read bandwidth as the engine could see it: streams from huge pages with the same prefetch distance as the
// kernels.
#include <algorithm>
#include <chrono>
#include <vector>

#include "engine/arena.h"
#include "engine/thread_pool.h"
#include "kernels/kernels.h"

namespace pomona {
namespace {

std::uint64_t read_stream(const std::uint8_t* p, std::size_t bytes) {
  std::uint64_t sums[8] = {};
  const auto* words = reinterpret_cast<const std::uint64_t*>(p);
  for (std::size_t i = 0; i + 8 <= bytes / 8; i += 8) {
#if defined(__GNUC__)
    __builtin_prefetch(words + i + 192);
#endif
    for (int j = 0; j < 8; ++j) sums[j] += words[i + j];
  }
  std::uint64_t total = 0;
  for (const std::uint64_t s : sums) total += s;
  return total;
}

} // namespace

double measure_bandwidth(std::size_t bytes, int threads) {
  using Clock = std::chrono::steady_clock;
  bytes = std::max<std::size_t>(bytes / 64 * 64, 64);
  std::vector<HugeBuffer> buffers;
  for (int i = 0; i < threads; ++i) {
    buffers.emplace_back(bytes);
    std::fill_n(buffers.back().data(), bytes, static_cast<std::uint8_t>(i + 1));
  }
  ThreadPool pool(threads);
  std::vector<std::uint64_t> results(threads * 8);
  std::vector<double> seconds;
  for (int repeat = 0; repeat < 7; ++repeat) {
    const auto start = Clock::now();
    pool.run([&](int t) { results[t * 8] += read_stream(buffers[t].data(), bytes); });
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  volatile std::uint64_t sink = results[0]; // keeps the reads
  (void)sink;
  return static_cast<double>(bytes) * threads / seconds[seconds.size() / 2] / 1e9;
}

} // namespace pomona
