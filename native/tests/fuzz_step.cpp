// Fuzzes the calls of the engine: any arguments in any order, on a small random model, with room for few
// tokens. A call works or throws std::invalid_argument or KvCacheFull, and then no sequence has changed; what
// a sequence computes depends on its own tokens alone; when all sequences are freed, all memory is.
#include <algorithm>
#include <map>

#include "tests/fuzz_input.h"
#include "tests/random_model.h"

namespace pomona::testing {
namespace {

using Tokens = std::vector<std::int32_t>;

struct World {
  ModelShape shape = tiny_shape();
  Tensors model = random_model(shape, 61, Format::palette, true);
  std::vector<std::shared_ptr<const Adapter>> adapters;
  std::shared_ptr<const Adapter> foreign; // of a model of another size
  std::unique_ptr<Engine> oracle;         // computes every sequence anew, alone

  World() {
    adapters.push_back(nullptr);
    for (const int rank : {3, 8}) adapters.push_back(make_adapter(shape, random_adapter(shape, rank, rank)));
    ModelShape other = shape;
    other.hidden *= 2;
    foreign = make_adapter(other, random_adapter(other, 2, 1));
    oracle = std::make_unique<Engine>(shape, model.map(), EngineOptions{1, "auto", 128, 96, true, false});
  }

  int next_of(const Tokens& tokens, int adapter) const {
    const int sequence = oracle->new_sequence(adapters[adapter]);
    int token = -1;
    for (std::size_t i = 0; i < tokens.size(); i += 64) // of 96 that a step takes
      token =
          oracle
              ->step({StepInput{
                  sequence, {tokens.begin() + i, tokens.begin() + std::min(i + 64, tokens.size())}, {}, {}}})
              .at(0)
              .at(0);
    oracle->free_sequence(sequence);
    return token;
  }
};

const World& world() {
  static const World w;
  return w;
}

// The engine under test, and beside it what its sequences should be.
class Run {
 public:
  explicit Run(FuzzInput input)
      : in_(input),
        prefix_cache_(in_.one_in(2)),
        threads_(in_.one_in(4) ? 2 : 1),
        kv_tokens_(16 * in_.integer(1, 16)),
        batch_tokens_(in_.one_in(4) ? in_.integer(1, 48) : 48),
        engine_(world().shape, world().model.map(),
                EngineOptions{threads_, "auto", kv_tokens_, batch_tokens_, in_.one_in(2), prefix_cache_,
                              in_.one_in(2)}) {}

  void all() {
    for (int calls = 0; !in_.empty() && calls < 60; ++calls) {
      call();
      check();
    }
    while (!mirror_.empty()) {
      const int id = mirror_.begin()->first;
      check_continuation(id);
      engine_.free_sequence(id);
      mirror_.erase(id);
      check();
    }
    expect(engine_.free_tokens() == kv_tokens_, "all memory is free when all sequences are");
  }

 private:
  struct Mirror {
    Tokens tokens;
    int adapter = 0;
  };

  // Runs a call that may be refused; whether it was not.
  template <class F>
  bool works(F&& f) {
    const int free = engine_.free_tokens();
    try {
      f();
      return true;
    } catch (const std::invalid_argument&) {
    } catch (const KvCacheFull&) {
    }
    expect(engine_.free_tokens() == free, "a refused call takes no memory");
    return false;
  }

  int some_sequence() {
    if (mirror_.empty() || in_.one_in(12)) return in_.wild(-2, 6);
    return std::next(mirror_.begin(), in_.integer(0, static_cast<int>(mirror_.size()) - 1))->first;
  }

  Tokens some_tokens(int most) {
    Tokens tokens(in_.one_in(20) ? 0 : in_.integer(1, most));
    const bool common = in_.one_in(2); // a beginning that other sequences share, of several pages
    if (common && in_.one_in(2)) tokens.resize(in_.integer(17, 47));
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] =
          common && i < 40 ? static_cast<std::int32_t>(i % 7) : in_.integer(0, world().shape.vocab - 1);
    if (!tokens.empty() && in_.one_in(16))
      tokens[in_.integer(0, static_cast<int>(tokens.size()) - 1)] = in_.wild(-1, 70);
    return tokens;
  }

  Sampling some_sampling() {
    Sampling s;
    if (in_.one_in(2)) return s;
    s.temperature = in_.real();
    s.top_k = in_.wild(0, 64);
    s.top_p = in_.real();
    s.min_p = in_.real();
    s.repetition_penalty = in_.real();
    s.seed = in_.word();
    return s;
  }

  std::vector<std::uint32_t> some_mask() {
    if (!in_.one_in(6)) return {};
    std::vector<std::uint32_t> mask(in_.one_in(3) ? in_.integer(0, 5) : 2);
    for (std::uint32_t& m : mask) m = in_.word();
    return mask;
  }

  void call() {
    switch (in_.integer(0, 11)) {
      case 0:
      case 1:
        return create();
      case 2:
        return release();
      case 3:
      case 4:
        return truncate();
      case 5:
        return logits();
      case 6:
        return score();
      case 7:
        return moments();
      default:
        return step();
    }
  }

  void moments() {
    Tokens tokens(in_.integer(1, 20));
    for (std::int32_t& token : tokens) token = in_.integer(-1, engine_.shape().vocab);
    std::vector<float> residual(tokens.size() * engine_.shape().hidden);
    try {
      engine_.collect_moments({in_.one_in(2) ? "lm_head" : "model.layers.0.mlp.down_proj"}, in_.one_in(2));
      engine_.run_layers(tokens, in_.integer(-1, 3), in_.integer(-1, 4), residual.data());
    } catch (const std::invalid_argument&) {
    } catch (const KvCacheFull&) {
    }
    engine_.take_moments();
  }

  void create() {
    if (mirror_.size() >= 8) return;
    const int which = in_.integer(0, 3);
    int id = -1;
    const auto adapter = which == 3 ? world().foreign : world().adapters[which];
    if (!works([&] { id = engine_.new_sequence(adapter); })) {
      expect(which == 3, "a new sequence is not refused");
      return;
    }
    expect(which != 3, "an adapter of another model is refused");
    expect(!mirror_.contains(id), "a new sequence has an id of its own");
    mirror_[id].adapter = which;
  }

  void release() {
    const int id = some_sequence();
    const bool done = works([&] { engine_.free_sequence(id); });
    expect(done == mirror_.contains(id), "a sequence is freed when there is one");
    mirror_.erase(id);
  }

  void truncate() {
    const int id = some_sequence();
    const auto it = mirror_.find(id);
    const int length = it == mirror_.end() ? 0 : static_cast<int>(it->second.tokens.size());
    const int to = in_.wild(0, length);
    if (works([&] { engine_.truncate(id, to); })) {
      expect(it != mirror_.end() && to >= 0 && to <= length, "a cut that makes no sense is refused");
      it->second.tokens.resize(to);
    } else {
      // Without a prefix cache nothing is shared, so nothing needs to be copied.
      expect(prefix_cache_ || it == mirror_.end() || to < 0 || to > length, "a good cut is not refused");
    }
  }

  void step() {
    std::vector<StepInput> inputs(in_.one_in(3) ? in_.integer(0, 4) : 1);
    for (StepInput& input : inputs) {
      input = {some_sequence(), some_tokens(in_.one_in(4) ? 50 : 8), some_sampling(), some_mask()};
      if (in_.one_in(3)) input.drafts = some_drafts(input);
    }
    std::vector<std::vector<int>> sampled;
    if (!works([&] { sampled = engine_.step(inputs); })) return;
    expect(sampled.size() == inputs.size(), "a step gives something for every input");
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const Tokens& drafts = inputs[i].drafts;
      const std::size_t accepted = sampled[i].size() - 1;
      expect(!sampled[i].empty() && accepted <= drafts.size(), "one token and as many as there are drafts");
      Tokens tokens = inputs[i].tokens;
      tokens.insert(tokens.end(), drafts.begin(), drafts.begin() + static_cast<std::ptrdiff_t>(accepted));
      for (std::size_t j = 0; j < accepted; ++j) expect(sampled[i][j] == drafts[j], "right drafts are kept");
      Mirror& m = append(inputs[i].sequence, tokens);
      const int last = sampled[i].back();
      expect(last >= 0 && last < world().shape.vocab, "a sampled token is one of the vocabulary");
      expect(accepted == drafts.size() || last != drafts[accepted], "no right draft is refused");
      const Sampling& s = inputs[i].sampling;
      if (s.temperature == 0.0f && s.repetition_penalty == 1.0f && inputs[i].mask.empty() && in_.one_in(2))
        expect(last == world().next_of(m.tokens, m.adapter), "a greedy token depends on its sequence alone");
    }
  }

  // Anything, or what greedy decoding will say, for a part.
  Tokens some_drafts(const StepInput& input) {
    Tokens drafts = some_tokens(6);
    const auto it = mirror_.find(input.sequence);
    if (it == mirror_.end() || in_.one_in(2)) return drafts;
    Tokens tokens = it->second.tokens;
    tokens.insert(tokens.end(), input.tokens.begin(), input.tokens.end());
    for (const std::int32_t t : tokens)
      if (t < 0 || t >= world().shape.vocab) return drafts;
    if (tokens.empty() || tokens.size() > 48) return drafts;
    for (std::size_t i = 0; i < drafts.size() && i < 3; ++i) {
      drafts[i] = world().next_of(tokens, it->second.adapter);
      tokens.push_back(drafts[i]);
    }
    return drafts;
  }

  void logits() {
    const int id = some_sequence();
    const Tokens tokens = some_tokens(20);
    std::vector<float> out(tokens.size() * world().shape.vocab, -7.5f);
    if (works([&] { engine_.logits(id, tokens, out.data()); }))
      append(id, tokens);
    else
      expect(std::count(out.begin(), out.end(), -7.5f) == static_cast<std::ptrdiff_t>(out.size()),
             "a refused call writes nothing");
  }

  void score() {
    const int id = some_sequence();
    const Tokens tokens = some_tokens(20);
    Tokens targets(in_.one_in(16) ? in_.integer(0, 30) : tokens.size());
    for (std::int32_t& t : targets) t = in_.wild(-1, world().shape.vocab - 1);
    std::vector<float> out(tokens.size());
    if (!works([&] { engine_.score(id, tokens, targets, out.data()); })) return;
    for (const float v : out) expect(v <= 1e-4f, "a log probability is at most 0");
    append(id, tokens);
  }

  Mirror& append(int id, const Tokens& tokens) {
    const auto it = mirror_.find(id);
    expect(it != mirror_.end(), "only a sequence that exists takes tokens");
    expect(!tokens.empty(), "an input without tokens is refused");
    for (const std::int32_t t : tokens)
      expect(t >= 0 && t < world().shape.vocab, "a token outside the vocabulary is refused");
    it->second.tokens.insert(it->second.tokens.end(), tokens.begin(), tokens.end());
    return it->second;
  }

  void check() {
    int pages = 0;
    for (const auto& [id, m] : mirror_) {
      const int length = static_cast<int>(m.tokens.size());
      expect(engine_.length(id) == length, "a sequence has the tokens that it was given");
      expect(length <= world().shape.max_positions, "no sequence is longer than the model's positions");
      expect(engine_.reused_tokens(id) >= 0, "reused tokens are counted");
      pages += (length + kPageTokens - 1) / kPageTokens;
    }
    const int free = engine_.free_tokens(), without_sharing = kv_tokens_ - pages * kPageTokens;
    expect(free <= kv_tokens_, "no memory comes from nowhere");
    expect(prefix_cache_ ? free >= without_sharing : free == without_sharing,
           "pages are taken only for tokens");
  }

  // One more token must give what a fresh computation of the whole sequence gives.
  void check_continuation(int id) {
    Mirror& m = mirror_[id];
    if (static_cast<int>(m.tokens.size()) >= world().shape.max_positions || !in_.one_in(2)) return;
    int token = -1;
    if (!works([&] { token = engine_.step({StepInput{id, {5}, {}, {}}}).at(0).at(0); })) return;
    append(id, {5});
    expect(token == world().next_of(m.tokens, m.adapter), "the next token is that of a fresh computation");
  }

  FuzzInput in_;
  bool prefix_cache_;
  int threads_, kv_tokens_, batch_tokens_;
  Engine engine_;
  std::map<int, Mirror> mirror_;
};

} // namespace
} // namespace pomona::testing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  pomona::testing::Run(pomona::testing::FuzzInput(data, size)).all();
  return 0;
}
