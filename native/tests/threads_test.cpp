// Several threads at once: the pool's barriers, and clients that share one engine. Made for ThreadSanitizer;
// the answers are checked too.
#include <doctest/doctest.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "tests/random_model.h"

namespace pomona::testing {
namespace {

using Tokens = std::vector<std::int32_t>;

} // namespace

TEST_CASE("threads: a barrier orders what came before it and what comes after") {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    std::vector<int> mine(threads);
    int lasts = 0, wrong = 0; // written by the last to arrive alone
    for (int run = 0; run < 20; ++run) {
      pool.run([&](int t) {
        for (int phase = 1; phase <= 10; ++phase) {
          mine[t] = run * 100 + phase;
          pool.barrier([&] {
            ++lasts;
            for (const int value : mine) wrong += value != run * 100 + phase;
          });
          for (const int value : mine) // nobody may go on before all have read
            if (value != run * 100 + phase) std::abort();
          pool.barrier();
        }
      });
    }
    CHECK(lasts == 200);
    CHECK(wrong == 0);
  }
}

TEST_CASE("threads: a pool can go at once, after work, and while its workers sleep") {
  for (int round = 0; round < 30; ++round) {
    ThreadPool pool(1 + round % 4);
    std::atomic<int> sum{0};
    for (int run = 0; run < round % 3; ++run) pool.run([&](int t) { sum += t + 1; });
    if (round % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    const int n = pool.size();
    CHECK(sum == round % 3 * n * (n + 1) / 2);
  }
}

TEST_CASE("threads: several clients of one engine, adapters replaced meanwhile") {
  constexpr int kClients = 4, kRounds = 12, kPrompts = 5, kSteps = 5;
  const ModelShape shape = tiny_shape();
  const Tensors model = random_model(shape, 31, Format::palette, true);
  Random random(32);
  std::vector<Tokens> prompts;
  for (int i = 0; i < kPrompts; ++i) prompts.push_back(random_tokens(shape, random.integer(1, 50), random));
  std::vector<AdapterParts> versions;
  for (int v = 0; v < 3; ++v) versions.push_back(random_adapter(shape, 2 + 3 * v, 40 + v));

  for (const bool prefix_cache : {false, true}) {
    Engine engine(shape, model.map(), {2, "auto", 1024, 64, true, prefix_cache});
    const int free = engine.free_tokens();
    std::vector<std::vector<std::vector<int>>> expected(versions.size() + 1); // the last: no adapter
    for (const Tokens& prompt : prompts) {
      for (std::size_t v = 0; v < versions.size(); ++v)
        expected[v].push_back(greedy(engine, prompt, kSteps, make_adapter(shape, versions[v])));
      expected[versions.size()].push_back(greedy(engine, prompt, kSteps));
    }

    std::mutex mutex; // of `current`
    std::pair<std::size_t, std::shared_ptr<const Adapter>> current{0, make_adapter(shape, versions[0])};
    std::atomic<int> wrong{0}, full{0}, clients{kClients};
    std::vector<std::thread> threads;
    for (int c = 0; c < kClients; ++c)
      threads.emplace_back([&, c] {
        Random choice(50 + c);
        for (int round = 0; round < kRounds; ++round) {
          std::size_t version = versions.size();
          std::shared_ptr<const Adapter> adapter;
          if (choice.chance(0.7)) {
            const std::lock_guard lock(mutex);
            std::tie(version, adapter) = current;
          }
          const int which = choice.integer(0, kPrompts - 1);
          const std::vector<int>& answer = expected[version][which];
          const int sequence = engine.new_sequence(std::move(adapter));
          try {
            if (engine.step({{sequence, prompts[which], {}, {}}}).at(0).at(0) != answer[0]) ++wrong;
            const int length = engine.length(sequence);
            if (length != static_cast<int>(prompts[which].size())) ++wrong;
            for (int i = 1; i < kSteps; ++i)
              if (engine.step({{sequence, {answer[i - 1]}, {}, {}}}).at(0).at(0) != answer[i]) ++wrong;
            engine.truncate(sequence, length);
            if (engine.step({{sequence, {answer[0]}, {}, {}}}).at(0).at(0) != answer[1]) ++wrong;
            if (engine.reused_tokens(sequence) % kPageTokens != 0 || engine.free_tokens() > free) ++wrong;
          } catch (const KvCacheFull&) {
            ++full;
          }
          engine.free_sequence(sequence);
        }
        --clients;
      });
    for (std::size_t v = 1; clients > 0; v = (v + 1) % versions.size()) {
      auto next = make_adapter(shape, versions[v]);
      {
        const std::lock_guard lock(mutex);
        current = {v, std::move(next)}; // the old one goes when its last sequence does
      }
      std::this_thread::yield();
    }
    for (std::thread& t : threads) t.join();
    CHECK(wrong == 0);
    CHECK(full == 0);
    CHECK(engine.free_tokens() == free);
  }
}

TEST_CASE("threads: moments are collected while others step") {
  const ModelShape shape = tiny_shape();
  const Tensors model = random_model(shape, 33, Format::palette);
  Engine engine(shape, model.map(), {2, "auto", 512, 64, true, false});
  Random random(34);
  const Tokens prompt = random_tokens(shape, 30, random);
  const std::string module = "model.layers.0.self_attn.q_proj";
  engine.collect_moments({module}, true);
  std::thread other([&] {
    for (int i = 0; i < 10; ++i) greedy(engine, prompt, 1);
  });
  std::vector<float> residual(prompt.size() * shape.hidden);
  for (int i = 0; i < 10; ++i) engine.run_layers(prompt, 0, 1, residual.data());
  const auto moments = engine.take_moments();
  other.join();
  CHECK(moments.at(module).rows == 300); // what others run is not observed
  CHECK(engine.take_moments().empty());
}

} // namespace pomona::testing
