// The engine on small random models: what it computes depends on nothing but the sequence's own tokens and
// adapter, and what it refuses changes nothing.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/random_model.h"

namespace pomona::testing {
namespace {

using Tokens = std::vector<std::int32_t>;
using Floats = std::vector<float>;

EngineOptions options(const std::string& isa, int threads, bool prefix_cache = false) {
  return {threads, isa, 2048, 512, true, prefix_cache};
}

// Logits of every token, the prompt given in pieces of `chunk`.
Floats logits(Engine& engine, const Tokens& tokens, std::shared_ptr<const Adapter> adapter, int chunk) {
  const std::size_t vocab = engine.shape().vocab;
  Floats out(tokens.size() * vocab);
  const int sequence = engine.new_sequence(std::move(adapter));
  for (std::size_t i = 0; i < tokens.size(); i += chunk) {
    const std::size_t count = std::min<std::size_t>(chunk, tokens.size() - i);
    engine.logits(sequence, {tokens.data() + i, count}, out.data() + i * vocab);
  }
  engine.free_sequence(sequence);
  return out;
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Request {
  std::shared_ptr<const Adapter> adapter;
  Tokens prompt;
};

std::vector<std::vector<int>> together(Engine& engine, const std::vector<Request>& requests, int steps) {
  std::vector<int> sequences;
  std::vector<Tokens> next;
  std::vector<std::vector<int>> said(requests.size());
  for (const Request& r : requests) {
    sequences.push_back(engine.new_sequence(r.adapter));
    next.push_back(r.prompt);
  }
  for (int i = 0; i < steps; ++i) {
    std::vector<StepInput> inputs;
    for (std::size_t r = 0; r < requests.size(); ++r) inputs.push_back({sequences[r], next[r], {}, {}});
    const std::vector<std::vector<int>> sampled = engine.step(inputs);
    for (std::size_t r = 0; r < requests.size(); ++r) {
      REQUIRE(sampled[r].size() == 1);
      said[r].push_back(sampled[r][0]);
      next[r] = sampled[r];
    }
  }
  for (const int s : sequences) engine.free_sequence(s);
  return said;
}

} // namespace

TEST_CASE("logits have the same bits for any chunks and threads, on every instruction set") {
  const ModelShape shape = small_shape();
  Random random(21);
  const Tokens tokens = random_tokens(shape, 290, random); // more than one attention chunk
  const Tokens few(tokens.begin(), tokens.begin() + 20);
  std::vector<std::string> names = instruction_sets();
  std::reverse(names.begin(), names.end()); // scalar first
  for (const bool mixed : {false, true}) {  // all palettes and no adapter, then all formats and an adapter
    const Tensors model = random_model(shape, 7, Format::palette, mixed);
    const auto adapter = mixed ? make_adapter(shape, random_adapter(shape, 5, 3)) : nullptr;
    Floats of_scalar;
    for (const std::string& isa : names) {
      CAPTURE(isa);
      Engine one(shape, model.map(), options(isa, 1)), three(shape, model.map(), options(isa, 3));
      const Floats expected = logits(one, tokens, adapter, 512);
      REQUIRE(same_bits(logits(three, tokens, adapter, 37), expected));
      const Floats one_by_one = logits(three, few, adapter, 1);
      REQUIRE(std::memcmp(one_by_one.data(), expected.data(), one_by_one.size() * sizeof(float)) == 0);
      REQUIRE(std::all_of(expected.begin(), expected.end(), [](float v) { return std::isfinite(v); }));
      // Sums across lanes round differently: the last bits may differ between instruction sets.
      if (of_scalar.empty()) of_scalar = expected;
      double difference = 0.0, size = 0.0;
      for (std::size_t i = 0; i < expected.size(); ++i) {
        difference += std::pow(expected[i] - of_scalar[i], 2);
        size += std::pow(of_scalar[i], 2);
      }
      CHECK(std::sqrt(difference / size) < 1e-3);
    }
  }
}

TEST_CASE("divergences are those of the logits, from the beginning and from any layer") {
  const ModelShape shape = small_shape();
  Random random(22);
  const Tokens tokens = random_tokens(shape, 70, random);
  const std::size_t count = tokens.size(), vocab = shape.vocab;
  const Tensors model = random_model(shape, 7, Format::palette, true),
                other = random_model(shape, 8, Format::palette);
  Engine engine(shape, model.map(), options("auto", 3)), changed(shape, other.map(), options("auto", 2));
  std::vector<std::uint16_t> whole(count * vocab), part(count * vocab);
  engine.distributions(tokens, 0, nullptr, whole.data());
  std::vector<double> kl(count);
  changed.divergences(tokens, 0, nullptr, whole.data(), kl.data());
  const Floats p = logits(engine, tokens, nullptr, 512), q = logits(changed, tokens, nullptr, 512);
  for (std::size_t i = 0; i < count; ++i) {
    double p_sum = 0.0, q_sum = 0.0, expected = 0.0;
    for (std::size_t v = 0; v < vocab; ++v) {
      p_sum += std::exp(static_cast<double>(p[i * vocab + v]));
      q_sum += std::exp(static_cast<double>(q[i * vocab + v]));
    }
    for (std::size_t v = 0; v < vocab; ++v) {
      const double log_p = p[i * vocab + v] - std::log(p_sum), log_q = q[i * vocab + v] - std::log(q_sum);
      expected += std::exp(log_p) * (log_p - log_q);
    }
    CHECK(std::fabs(kl[i] - expected) < 1e-4 * (1.0 + expected));
  }
  Floats residual(count * shape.hidden);
  for (int l = 0; l < shape.layers; ++l) {
    engine.run_layers(tokens, l, l + 1, residual.data());
    engine.distributions(tokens, l + 1, residual.data(), part.data());
    CHECK(part == whole);
  }
  CHECK_THROWS_AS(engine.distributions(tokens, shape.layers + 1, residual.data(), part.data()),
                  std::invalid_argument);
  CHECK_THROWS_AS(engine.divergences(tokens, -1, residual.data(), part.data(), kl.data()),
                  std::invalid_argument);
  CHECK(engine.free_tokens() == engine.kv_tokens());
}

TEST_CASE("a mixed batch says what every request says alone") {
  const ModelShape shape = small_shape();
  const Tensors model = random_model(shape, 8, Format::palette, true);
  Random random(22);
  std::vector<Request> requests;
  for (const int rank : {0, 4, 9, 0, 16, 1})
    requests.push_back({rank == 0 ? nullptr : make_adapter(shape, random_adapter(shape, rank, rank)),
                        random_tokens(shape, random.integer(1, 60), random)});
  for (const std::string& isa : instruction_sets()) {
    CAPTURE(isa);
    for (const bool prefix_cache : {false, true}) {
      Engine engine(shape, model.map(), options(isa, 2, prefix_cache));
      const int free = engine.free_tokens();
      std::vector<std::vector<int>> alone;
      for (const Request& r : requests) alone.push_back(greedy(engine, r.prompt, 8, r.adapter));
      REQUIRE(together(engine, requests, 8) == alone);
      REQUIRE(engine.free_tokens() == free);
      std::vector<std::vector<int>> distinct = alone; // the prompts and adapters matter
      std::sort(distinct.begin(), distinct.end());
      distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
      REQUIRE(distinct.size() > 3);
    }
  }
}

// Large enough that threads keep their tokens: with contexts of about one length each attends for its own,
// with others all share the work; so they do while a prompt lies with two of them.
TEST_CASE("a large mixed batch says what every request says alone, with any number of threads") {
  const ModelShape shape = small_shape();
  Random random(26);
  const auto tokens = [&](int count) { return random_tokens(shape, count, random); };
  for (const Format format : {Format::palette, Format::bf16}) {
    const Tensors model = random_model(shape, 8, format, format == Format::palette);
    std::vector<std::shared_ptr<const Adapter>> adapters = {nullptr};
    for (const int rank : {3, 16}) adapters.push_back(make_adapter(shape, random_adapter(shape, rank, rank)));
    std::vector<Request> even, uneven;
    for (int i = 0; i < 36; ++i) {
      even.push_back({adapters[i / 9 % 3], tokens(random.integer(6, 12))});
      uneven.push_back({adapters[i / 5 % 3], tokens(random.integer(1, 5))});
    }
    uneven[7].prompt = tokens(280); // more than one attention chunk
    Engine alone(shape, model.map(), options("auto", 1));
    for (const std::vector<Request>& requests : {even, uneven}) {
      std::vector<std::vector<int>> expected;
      for (const Request& r : requests) expected.push_back(greedy(alone, r.prompt, 4, r.adapter));
      for (const int threads : {1, 2, 3}) {
        CAPTURE(threads);
        Engine engine(shape, model.map(), options("auto", threads, threads == 3));
        REQUIRE(together(engine, requests, 4) == expected);
      }
    }
  }
}

TEST_CASE("a prefix that is found in the cache gives the same tokens") {
  const ModelShape shape = small_shape();
  const Tensors model = random_model(shape, 9, Format::palette);
  Random random(23);
  const auto adapter = make_adapter(shape, random_adapter(shape, 4, 1));
  const Tokens prompt = random_tokens(shape, 100, random);
  Engine plain(shape, model.map(), options("auto", 2));
  Engine caching(shape, model.map(), options("auto", 2, true));
  for (const auto& a : {std::shared_ptr<const Adapter>(), adapter}) {
    const std::vector<int> expected = greedy(plain, prompt, 20, a);
    REQUIRE(greedy(caching, prompt, 20, a) == expected);
    const int sequence = caching.new_sequence(a);
    REQUIRE(caching.step({StepInput{sequence, prompt, {}, {}}}).at(0).at(0) == expected[0]);
    REQUIRE(caching.reused_tokens(sequence) == 96);
    // Cut in the middle of a shared page and gone on with: the page is copied, not changed.
    caching.truncate(sequence, 50);
    const Tokens other = random_tokens(shape, 20, random);
    Tokens whole(prompt.begin(), prompt.begin() + 50);
    whole.insert(whole.end(), other.begin(), other.end());
    std::vector<int> said = {caching.step({StepInput{sequence, other, {}, {}}}).at(0).at(0)};
    for (int i = 1; i < 10; ++i)
      said.push_back(caching.step({StepInput{sequence, {said.back()}, {}, {}}}).at(0).at(0));
    REQUIRE(said == greedy(plain, whole, 10, a));
    REQUIRE(greedy(caching, prompt, 20, a) == expected);
    caching.free_sequence(sequence);
  }
}

TEST_CASE("a page that only begins alike is copied, wherever it is, and gives the same tokens") {
  const ModelShape shape = small_shape();
  const Tensors model = random_model(shape, 9, Format::palette);
  Random random(29);
  const auto adapter = make_adapter(shape, random_adapter(shape, 4, 1));
  const Tokens prompt = random_tokens(shape, 40, random);
  for (const Format kv_cache : {Format::bf16, Format::int8}) {
    EngineOptions sharing = options("auto", 2, true);
    sharing.partial_pages = true;
    sharing.kv_cache = kv_cache;
    EngineOptions alone = options("auto", 2);
    alone.kv_cache = kv_cache;
    Engine caching(shape, model.map(), sharing), reference(shape, model.map(), alone);
    // Other tokens behind the same 38, of which the last 6 begin a page; in front of it two whole ones.
    Tokens other = prompt;
    other[38] = (other[38] + 1) % shape.vocab;
    const int first = caching.new_sequence();
    const int said = caching.step({StepInput{first, prompt, {}, {}}}).at(0).at(0);
    const auto goes_on = [&](int id, const Tokens& tokens, int reused) {
      std::vector<int> found = {caching.step({StepInput{id, tokens, {}, {}}}).at(0).at(0)};
      for (int i = 1; i < 20; ++i)
        found.push_back(caching.step({StepInput{id, {found.back()}, {}, {}}}).at(0).at(0));
      CHECK(found == greedy(reference, tokens, 20));
      CHECK(caching.reused_tokens(id) == reused);
      caching.free_sequence(id);
    };
    goes_on(caching.new_sequence(), other, 38);  // from the unfinished page of a running sequence
    goes_on(caching.new_sequence(), prompt, 39); // one token is always computed
    // Another adapter finds nothing, and neither do tokens that differ at once.
    const int adapted = caching.new_sequence(adapter);
    caching.step({StepInput{adapted, prompt, {}, {}}});
    CHECK(caching.reused_tokens(adapted) == 0);
    caching.free_sequence(adapted);
    Tokens fresh = prompt;
    fresh[0] = (fresh[0] + 1) % shape.vocab;
    goes_on(caching.new_sequence(), fresh, 0);
    // The one that was copied from goes on as if nothing had been.
    std::vector<int> mine = {said};
    while (mine.size() < 20)
      mine.push_back(caching.step({StepInput{first, {mine.back()}, {}, {}}}).at(0).at(0));
    CHECK(mine == greedy(reference, prompt, 20));
    caching.free_sequence(first);
    other[38] = (other[38] + 1) % shape.vocab;
    goes_on(caching.new_sequence(), other, 38); // from the cache, where no sequence holds it any more
    CHECK(caching.free_tokens() == caching.kv_tokens());
  }
}

TEST_CASE("a copy of a page that begins alike is made where there is room, else done without") {
  const ModelShape shape = small_shape();
  const Tensors model = random_model(shape, 9, Format::palette);
  Random random(30);
  const Tokens prompt = random_tokens(shape, 24, random);
  EngineOptions small = {2, "auto", 48, 48, true, true};
  small.partial_pages = true;
  Engine plain(shape, model.map(), options("auto", 2)), engine(shape, model.map(), small);
  const int said = greedy(plain, prompt, 1).at(0);
  const int first = engine.new_sequence(), second = engine.new_sequence();
  REQUIRE(engine.step({StepInput{first, prompt, {}, {}}}).at(0).at(0) == said);
  REQUIRE(engine.step({StepInput{second, prompt, {}, {}}}).at(0).at(0) == said); // takes the last page
  REQUIRE(engine.reused_tokens(second) == 23);
  const int third = engine.new_sequence();
  CHECK_THROWS_AS(engine.step({StepInput{third, prompt, {}, {}}}), KvCacheFull);
  CHECK(engine.length(third) == 0);
  engine.free_sequence(second);
  CHECK(engine.step({StepInput{third, prompt, {}, {}}}).at(0).at(0) == said);
  engine.free_sequence(first);
  engine.free_sequence(third);
  CHECK(engine.free_tokens() == 48);
}

TEST_CASE("what is refused changes nothing") {
  const ModelShape shape = small_shape();
  const Tensors model = random_model(shape, 10, Format::int8);
  Random random(24);
  const Tokens prompt = random_tokens(shape, 20, random);
  Engine engine(shape, model.map(), {2, "auto", 64, 32, true, false});
  const std::vector<int> expected = greedy(engine, prompt, 10);
  const int sequence = engine.new_sequence(), other = engine.new_sequence();
  engine.step({StepInput{sequence, prompt, {}, {}}});

  const auto refused = [&](std::vector<StepInput> inputs) {
    CHECK_THROWS_AS(engine.step(inputs), std::invalid_argument);
  };
  refused({{sequence, {}, {}, {}}});
  refused({{99, {1}, {}, {}}});
  refused({{-1, {1}, {}, {}}});
  refused({{sequence, {1, shape.vocab}, {}, {}}});
  refused({{sequence, {-1}, {}, {}}});
  refused({{sequence, {1}, {}, {}}, {other, {1, -5}, {}, {}}});
  refused({{other, {1}, {}, {}}, {other, {2}, {}, {}}});
  refused({{other, Tokens(33, 1), {}, {}}});
  refused({{sequence, Tokens(20, 1), {}, {}}, {other, Tokens(20, 1), {}, {}}});
  refused({{sequence, {1}, {}, std::vector<std::uint32_t>(4)}});
  CHECK_THROWS_AS(engine.truncate(sequence, 21), std::invalid_argument);
  CHECK_THROWS_AS(engine.truncate(sequence, -1), std::invalid_argument);
  CHECK_THROWS_AS(engine.truncate(77, 0), std::invalid_argument);
  CHECK_THROWS_AS(engine.free_sequence(77), std::invalid_argument);
  CHECK_THROWS_AS(engine.length(-1), std::invalid_argument);
  Floats out(32 * shape.vocab);
  const Tokens one = {1}, two = {1, 2}, outside = {shape.vocab};
  CHECK_THROWS_AS(engine.score(sequence, two, one, out.data()), std::invalid_argument);
  CHECK_THROWS_AS(engine.score(sequence, one, outside, out.data()), std::invalid_argument);
  CHECK_THROWS_AS(engine.logits(sequence, outside, out.data()), std::invalid_argument);
  // 64 positions are 4 pages, of which 2 are taken.
  CHECK_THROWS_AS(
      engine.step({{sequence, {1}, {}, {}}, {other, Tokens(31, 1), {}, {}}, {other + 1, {1}, {}, {}}}),
      std::invalid_argument);
  const int third = engine.new_sequence();
  CHECK_THROWS_AS(
      engine.step({{other, Tokens(16, 1), {}, {}}, {third, Tokens(16, 1), {}, {}}, {sequence, {}, {}, {}}}),
      std::invalid_argument);
  engine.step({{other, Tokens(31, 1), {}, {}}});
  CHECK_THROWS_AS(engine.step({{third, {1}, {}, {}}}), KvCacheFull);

  CHECK(engine.length(sequence) == 20);
  CHECK(engine.length(third) == 0);
  std::vector<int> said = {expected[0]};
  for (int i = 1; i < 10; ++i)
    said.push_back(engine.step({StepInput{sequence, {said.back()}, {}, {}}}).at(0).at(0));
  CHECK(said == expected);
  for (const int s : {sequence, other, third}) engine.free_sequence(s);
  CHECK_THROWS_AS(engine.free_sequence(other), std::invalid_argument);
  CHECK(engine.free_tokens() == 64);
}

TEST_CASE("an adapter for another model is refused") {
  const ModelShape shape = small_shape();
  const Tensors model = random_model(shape, 11, Format::palette);
  Engine engine(shape, model.map(), options("auto", 1));
  for (int part = 0; part < 5; ++part) {
    ModelShape other = shape;
    int* parts[] = {&other.hidden, &other.ffn, &other.heads, &other.kv_heads, &other.layers};
    *parts[part] *= 2;
    const auto adapter = make_adapter(other, random_adapter(other, 2, 1));
    CHECK_THROWS_AS(engine.new_sequence(adapter), std::invalid_argument);
  }
  CHECK(engine.free_tokens() == engine.kv_tokens());
}

TEST_CASE("sizes that make no model are refused, by engine and adapter alike") {
  const Tensors nothing;
  for (const int bad :
       {0, -1, 17, 1 << 30, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()}) {
    CAPTURE(bad);
    for (int part = 0; part < 4; ++part) {
      CAPTURE(part);
      ModelShape shape = small_shape();
      int* parts[] = {&shape.hidden, &shape.ffn, &shape.head_dim, &shape.heads};
      *parts[part] = bad;
      if (part == 3) shape.kv_heads = bad == 17 ? 3 : bad;
      CHECK_THROWS_AS(Engine(shape, nothing.map(), options("auto", 1)), std::invalid_argument);
      CHECK_THROWS_AS(Adapter(shape, nothing.map(), {}, Format::bf16), std::invalid_argument);
    }
    if (bad == 17) continue;
    ModelShape layers = small_shape(), vocab = small_shape();
    layers.layers = bad;
    vocab.vocab = bad;
    CHECK_THROWS_AS(Adapter(layers, nothing.map(), {}, Format::bf16), std::invalid_argument);
    CHECK_THROWS_AS(Engine(vocab, nothing.map(), options("auto", 1)), std::invalid_argument);
  }
}

TEST_CASE("sampling values that are no numbers still give a token") {
  const ModelShape shape = small_shape();
  const Tensors model = random_model(shape, 12, Format::palette);
  Engine engine(shape, model.map(), options("auto", 1));
  const float nan = std::numeric_limits<float>::quiet_NaN(),
              infinity = std::numeric_limits<float>::infinity();
  const float values[] = {nan, infinity, -infinity, 0.0f, -1.0f, 1e-45f, 3e38f, 0.5f};
  Random random(25);
  for (int round = 0; round < 300; ++round) {
    const auto value = [&] { return values[random.integer(0, 7)]; };
    Sampling sampling;
    sampling.temperature = value();
    sampling.top_k = random.chance(0.5) ? random.integer(-5, 200) : 0;
    sampling.top_p = value();
    sampling.min_p = value();
    sampling.repetition_penalty = value();
    sampling.seed = random.next();
    std::vector<std::uint32_t> mask;
    if (random.chance(0.3)) mask.assign((shape.vocab + 31) / 32, random.chance(0.3) ? 0u : 0x00f0f001u);
    const int sequence = engine.new_sequence();
    const int token =
        engine.step({StepInput{sequence, random_tokens(shape, 3, random), sampling, mask}}).at(0).at(0);
    CHECK(token >= 0);
    CHECK(token < shape.vocab);
    engine.free_sequence(sequence);
  }
}

} // namespace pomona::testing
