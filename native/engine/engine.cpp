#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace pomona {
namespace {

constexpr int kLogitRows = 64; // logits are made and used in tiles of this many rows
constexpr double kPi = 3.14159265358979323846;

// Frequencies of the rotary embedding, with Llama 3's scaling where the configuration asks for it.
std::vector<double> inverse_frequencies(const ModelShape& s) {
  std::vector<double> frequencies;
  for (int i = 0; i < s.head_dim / 2; ++i) {
    double f = 1.0 / std::pow(s.rope_theta, 2.0 * i / s.head_dim);
    if (s.rope_factor > 0.0) {
      const double wavelength = 2.0 * kPi / f;
      const double low = s.rope_original_positions / s.rope_low_freq,
                   high = s.rope_original_positions / s.rope_high_freq;
      if (wavelength > low) {
        f /= s.rope_factor;
      } else if (wavelength > high) {
        const double smooth =
            (s.rope_original_positions / wavelength - s.rope_low_freq) / (s.rope_high_freq - s.rope_low_freq);
        f = (1.0 - smooth) * f / s.rope_factor + smooth * f;
      }
    }
    frequencies.push_back(f);
  }
  return frequencies;
}

const ModelShape& attendable(const ModelShape& s) {
  if (s.heads / s.kv_heads > kAttendRows)
    throw std::invalid_argument("more than 48 query heads share a key/value head");
  return s;
}

const EngineOptions& checked(const EngineOptions& o) {
  if (o.threads < 1 || o.threads > 1024) throw std::invalid_argument("threads must be 1 .. 1024");
  if (o.kv_tokens < 1) throw std::invalid_argument("kv_tokens must be positive");
  if (o.kv_cache == Format::palette) throw std::invalid_argument("the key/value cache is bf16 or int8");
  if (o.batch_tokens < 1 || o.batch_tokens > 1 << 16)
    throw std::invalid_argument("batch_tokens must be 1 .. 65536");
  return o;
}

std::size_t mask_words(const ModelShape& s) { return static_cast<std::size_t>(s.vocab + 31) / 32; }

} // namespace

Engine::Engine(const ModelShape& shape, const TensorMap& tensors, const EngineOptions& options)
    : shape_(attendable(checked(shape))),
      options_(checked(options)),
      kernels_(select_kernels(options.isa.c_str())),
      pool_(options.threads),
      weights_(shape_, tensors, options.huge_pages),
      cache_(options.kv_cache, shape.layers, shape.kv_heads, shape.head_dim, options.kv_tokens),
      inverse_frequency_(inverse_frequencies(shape)) {
  const std::size_t m = options_.batch_tokens;
  cos_ = HugeArray<float>(m * shape_.head_dim / 2);
  sin_ = HugeArray<float>(m * shape_.head_dim / 2);
  x_ = HugeArray<float>(m * shape_.hidden);
  normed_ = HugeArray<float>(m * shape_.hidden);
  qkv_ = HugeArray<float>(m * shape_.qkv_rows());
  attended_ = HugeArray<float>(m * shape_.q_rows());
  gate_ = HugeArray<float>(m * shape_.ffn);
  up_ = HugeArray<float>(m * shape_.ffn);
  y_ = HugeArray<float>(m * shape_.hidden);
  head_input_ = HugeArray<float>(static_cast<std::size_t>(kLogitRows) * shape_.hidden);
  logits_ = HugeArray<float>(static_cast<std::size_t>(kLogitRows) * shape_.vocab);

  const auto quantized = [&](std::size_t rows, int cols) {
    const std::size_t blocks = (cols + kBlock - 1) / kBlock;
    QuantRows q;
    q.cols = cols;
    q.q = quant_bytes_.emplace_back(rows * 2 * blocks * kBlock).data();
    q.scale = quant_scales_.emplace_back(rows * blocks).data();
    q.offset = quant_offsets_.emplace_back(rows * blocks).data();
    q.fine = quant_fine_.emplace_back(rows * blocks).data();
    return q;
  };
  quant_hidden_ = quantized(m, shape_.hidden);
  quant_attended_ = quantized(m, shape_.q_rows());
  quant_ffn_ = quantized(m, shape_.ffn);
  quant_head_ = quantized(kLogitRows, shape_.hidden);
  const int widest = std::max({shape_.hidden, shape_.ffn, shape_.q_rows()});
  for (int t = 0; t < options_.threads; ++t) {
    scratch_.emplace_back(matmul_scratch(widest));
    gathered_.emplace_back();
    attend_scratch_.emplace_back(static_cast<std::size_t>(kAttendRows) * 3 * shape_.head_dim);
  }
}

Engine::Sequence& Engine::sequence(int id) {
  if (id < 0 || id >= static_cast<int>(sequences_.size()) || !sequences_[id].used)
    throw std::invalid_argument("sequence " + std::to_string(id) + " does not exist");
  return sequences_[id];
}

int Engine::new_sequence(std::shared_ptr<const Adapter> adapter) {
  const std::lock_guard lock(mutex_);
  if (adapter != nullptr && !adapter->fits(shape_))
    throw std::invalid_argument("the adapter is for another model");
  auto it = std::find_if(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return !s.used; });
  if (it == sequences_.end()) it = sequences_.emplace(sequences_.end());
  it->used = true;
  it->adapter = std::move(adapter);
  return static_cast<int>(it - sequences_.begin());
}

void Engine::free_sequence(int id) {
  const std::lock_guard lock(mutex_);
  Sequence& s = sequence(id);
  cut(s, 0);
  s = Sequence{};
}

int Engine::length(int id) {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(sequence(id).tokens.size());
}

int Engine::reused_tokens(int id) {
  const std::lock_guard lock(mutex_);
  return sequence(id).reused;
}

void Engine::truncate(int id, int length) {
  const std::lock_guard lock(mutex_);
  Sequence& s = sequence(id);
  if (length < 0 || length > static_cast<int>(s.tokens.size()))
    throw std::invalid_argument("cannot truncate a sequence of " + std::to_string(s.tokens.size()) +
                                " tokens to " + std::to_string(length));
  cut(s, length);
}

int Engine::take_page() { return cache_.free_pages() > 0 ? cache_.allocate() : prefixes_.evict(); }

// Forgets the tokens from `length` on. A page that becomes partial will be written again: if others may read
// it too, the sequence goes on with a copy. Where there is no page for that, nothing changes.
void Engine::cut(Sequence& s, int length) {
  const std::size_t whole = length / kPageTokens, pages = (length + kPageTokens - 1) / kPageTokens;
  const bool shared = pages > whole && s.nodes.size() > whole;
  if (shared && !prefixes_.is_own_leaf(s.nodes[whole])) {
    bool room = free_pages() > 0 || s.pages.size() > std::max(pages, s.nodes.size());
    for (std::size_t i = pages; i < s.nodes.size(); ++i) room = room || prefixes_.is_own(s.nodes[i]);
    if (!room) throw KvCacheFull("no page is left for a copy of one that another sequence shares");
  }
  for (; s.pages.size() > pages; s.pages.pop_back()) {
    if (s.nodes.size() < s.pages.size()) {
      cache_.release(s.pages.back());
    } else {
      prefixes_.drop(s.nodes.back());
      s.nodes.pop_back();
    }
  }
  if (shared) {
    const int node = s.nodes.back();
    if (!prefixes_.give_back(node)) {
      const int copy = take_page();
      cache_.copy(prefixes_.page(node), copy);
      s.pages.back() = copy;
      prefixes_.drop(node);
    }
    s.nodes.pop_back();
  }
  s.tokens.resize(length);
}

// Takes over cached pages that go on with `tokens`; at least one token is left to compute.
void Engine::reuse_prefix(Sequence& s, std::span<const std::int32_t> tokens) {
  if (s.nodes.size() * kPageTokens != s.tokens.size()) return; // in the middle of a page of its own
  PrefixCache::PageTokens page;
  for (; tokens.size() > kPageTokens; tokens = tokens.subspan(kPageTokens)) {
    std::copy_n(tokens.begin(), kPageTokens, page.begin());
    const int node = prefixes_.find(s.last_node(), s.adapter_number(), page);
    if (node == PrefixCache::kRoot) break;
    prefixes_.hold(node);
    s.nodes.push_back(node);
    s.pages.push_back(prefixes_.page(node));
    s.tokens.insert(s.tokens.end(), page.begin(), page.end());
  }
  if (options_.partial_pages && tokens.size() > 1)
    copy_beginning(s, tokens.first(std::min<std::size_t>(tokens.size() - 1, kPageTokens)));
}

// Goes on with a copy of the page that begins with most of these tokens: one in the cache, or the last page
// of another sequence that has come as far on the same pages. Such a page goes on changing behind the tokens
// that are there already.
void Engine::copy_beginning(Sequence& s, std::span<const std::int32_t> tokens) {
  auto [node, same] = prefixes_.closest(s.last_node(), s.adapter_number(), tokens);
  int page = node == PrefixCache::kRoot ? -1 : prefixes_.page(node);
  for (const Sequence& other : sequences_) {
    if (!other.used || other.nodes.size() != s.nodes.size() || other.last_node() != s.last_node() ||
        other.adapter_number() != s.adapter_number() || other.tokens.size() <= s.tokens.size())
      continue;
    const auto theirs = std::span(other.tokens).subspan(s.tokens.size());
    const std::size_t alike = std::ranges::mismatch(tokens, theirs).in1 - tokens.begin();
    if (alike > same) {
      node = PrefixCache::kRoot;
      page = other.pages[s.nodes.size()];
      same = alike;
    }
  }
  if (same == 0) return;
  if (node != PrefixCache::kRoot) prefixes_.hold(node); // lest it is evicted for its own copy
  if (free_pages() > 0) {
    s.pages.push_back(take_page());
    cache_.copy(page, s.pages.back());
    s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(same));
  }
  if (node != PrefixCache::kRoot) prefixes_.drop(node);
}

void Engine::share_pages(Sequence& s) {
  const std::uint64_t adapter = s.adapter_number();
  PrefixCache::PageTokens page;
  while ((s.nodes.size() + 1) * kPageTokens <= s.tokens.size()) {
    const std::size_t i = s.nodes.size();
    std::copy_n(s.tokens.begin() + static_cast<std::ptrdiff_t>(i * kPageTokens), kPageTokens, page.begin());
    const int parent = s.last_node();
    int node = prefixes_.find(parent, adapter, page);
    if (node == PrefixCache::kRoot) {
      node = prefixes_.insert(parent, adapter, page, s.pages[i]);
    } else { // another sequence has computed the same bits
      prefixes_.hold(node);
      cache_.release(s.pages[i]);
      s.pages[i] = prefixes_.page(node);
    }
    s.nodes.push_back(node);
  }
}

void Engine::append(std::span<const StepInput> inputs, bool reuse) {
  int total = 0;
  std::vector<int> ids;
  for (const StepInput& input : inputs) {
    const Sequence& s = sequence(input.sequence);
    const std::size_t count = input.tokens.size() + input.drafts.size();
    if (input.tokens.empty()) throw std::invalid_argument("an input without tokens");
    const std::size_t words = input.late_mask ? input.late_mask->size() : input.mask.size();
    if ((words > 0 || input.late_mask) && words != (1 + input.drafts.size()) * mask_words(shape_))
      throw std::invalid_argument(
          "a token mask needs one bit per token of the vocabulary, for the next place and after every draft");
    for (const auto& [token, value] : input.sampling.bias)
      if (token < 0 || token >= shape_.vocab)
        throw std::invalid_argument("the bias names token " + std::to_string(token) +
                                    ", which is outside the vocabulary of " + std::to_string(shape_.vocab));
    if (count > static_cast<std::size_t>(options_.batch_tokens - total))
      throw std::invalid_argument("more than " + std::to_string(options_.batch_tokens) +
                                  " tokens in one step");
    total += static_cast<int>(count);
    for (const auto* tokens : {&input.tokens, &input.drafts})
      for (const std::int32_t token : *tokens)
        if (token < 0 || token >= shape_.vocab)
          throw std::invalid_argument("token id " + std::to_string(token) + " is outside the vocabulary of " +
                                      std::to_string(shape_.vocab));
    if (s.tokens.size() + count > static_cast<std::size_t>(shape_.max_positions))
      throw std::invalid_argument("the sequence would exceed the model's " +
                                  std::to_string(shape_.max_positions) + " positions");
    ids.push_back(input.sequence);
  }
  std::sort(ids.begin(), ids.end());
  if (std::adjacent_find(ids.begin(), ids.end()) != ids.end())
    throw std::invalid_argument("a sequence appears twice in one step");

  std::vector<int> lengths;
  int pages = 0;
  for (const StepInput& input : inputs) {
    Sequence& s = sequence(input.sequence);
    const std::size_t length = s.tokens.size() + input.tokens.size() + input.drafts.size();
    lengths.push_back(static_cast<int>(s.tokens.size()));
    if (reuse && options_.prefix_cache) reuse_prefix(s, input.tokens);
    pages += static_cast<int>((length + kPageTokens - 1) / kPageTokens - s.pages.size());
  }
  if (pages > free_pages()) {
    for (std::size_t i = 0; i < inputs.size(); ++i) cut(sequence(inputs[i].sequence), lengths[i]);
    throw KvCacheFull("the key/value cache is full (" + std::to_string(kv_tokens()) +
                      " tokens for all sequences)");
  }

  runs_.clear();
  rows_.clear();
  for (std::size_t n = 0; n < inputs.size(); ++n) {
    const StepInput& input = inputs[n];
    Sequence& s = sequence(input.sequence);
    const int start = static_cast<int>(s.tokens.size()), skipped = start - lengths[n];
    s.tokens.insert(s.tokens.end(), input.tokens.begin() + skipped, input.tokens.end());
    s.tokens.insert(s.tokens.end(), input.drafts.begin(), input.drafts.end());
    const int count = static_cast<int>(s.tokens.size()) - start, run = static_cast<int>(runs_.size());
    s.reused += skipped;
    runs_.push_back({input.sequence, static_cast<int>(rows_.size()), count, start, s.adapter.get()});
    runs_.back().drafts = static_cast<int>(input.drafts.size());
    for (int i = 0; i < count; ++i) rows_.push_back({run, start + i, s.tokens[start + i]});
    while (s.pages.size() * kPageTokens < s.tokens.size()) s.pages.push_back(take_page());
  }
}

std::vector<std::vector<int>> Engine::step(const std::vector<StepInput>& inputs) {
  const std::lock_guard lock(mutex_);
  append(inputs, true);
  // One place after the tokens and one after every draft. What is sampled there depends on the tokens up to
  // the place and on nothing else, so it is what a step without drafts gives once these are accepted.
  std::vector<std::vector<int>> sampled(inputs.size());
  Wanted wanted;
  for (std::size_t n = 0; n < inputs.size(); ++n) {
    sampled[n].resize(1 + runs_[n].drafts);
    if (inputs[n].logprobs) inputs[n].logprobs->begin(sampled[n].size());
    for (int place = runs_[n].drafts; place >= 0; --place)
      wanted.rows.push_back(runs_[n].row0 + runs_[n].count - 1 - place);
  }
  wanted.use = [&](int index, float* logits) {
    const Row& row = rows_[wanted.rows[index]];
    const Run& run = runs_[row.run];
    const StepInput& input = inputs[row.run];
    const int length = row.position + 1, place = run.drafts - (run.start + run.count - length);
    const std::span<const std::int32_t> tokens = sequences_[run.sequence].tokens,
                                        history = tokens.first(length);
    const std::span<float> values{logits, static_cast<std::size_t>(shape_.vocab)};
    std::vector<float> own; // the model's logits, which sampling changes
    if (input.logprobs) own.assign(values.begin(), values.end());
    const std::span<const std::uint32_t> mask =
        input.late_mask ? input.late_mask->wait() : std::span<const std::uint32_t>(input.mask);
    if (!mask.empty()) apply_mask(values, mask.subspan(place * mask_words(shape_), mask_words(shape_)));
    const int token = sample(kernels_, values, input.sampling, history, length);
    sampled[row.run][place] = token;
    if (input.logprobs) input.logprobs->note(place, kernels_, own, token);
  };
  forward(wanted);
  for (std::size_t n = 0; n < inputs.size(); ++n) {
    const std::vector<std::int32_t>& drafts = inputs[n].drafts;
    std::size_t accepted = 0;
    while (accepted < drafts.size() && sampled[n][accepted] == drafts[accepted]) ++accepted;
    sampled[n].resize(accepted + 1);
    if (inputs[n].logprobs) inputs[n].logprobs->keep(accepted + 1);
    Sequence& s = sequence(inputs[n].sequence);
    // Refused drafts lie in pages that nobody shares yet: this cut cannot fail.
    cut(s, static_cast<int>(s.tokens.size() - (drafts.size() - accepted)));
    if (options_.prefix_cache) share_pages(s);
  }
  return sampled;
}

void Engine::logits(int id, std::span<const std::int32_t> tokens, float* out) {
  const std::lock_guard lock(mutex_);
  append(std::vector{StepInput{id, {tokens.begin(), tokens.end()}, {}, {}}}, false);
  Wanted wanted;
  for (int i = 0; i < static_cast<int>(tokens.size()); ++i) wanted.rows.push_back(i);
  wanted.use = [&](int index, const float* logits) {
    std::memcpy(out + static_cast<std::size_t>(index) * shape_.vocab, logits, sizeof(float) * shape_.vocab);
  };
  forward(wanted);
}

void Engine::score(int id, std::span<const std::int32_t> tokens, std::span<const std::int32_t> targets,
                   float* out) {
  if (tokens.size() != targets.size()) throw std::invalid_argument("score needs one target per token");
  for (const std::int32_t target : targets)
    if (target >= shape_.vocab)
      throw std::invalid_argument("target " + std::to_string(target) + " is outside the vocabulary");
  const std::lock_guard lock(mutex_);
  append(std::vector{StepInput{id, {tokens.begin(), tokens.end()}, {}, {}}}, false);
  Wanted wanted;
  std::vector<int> positions;
  for (int i = 0; i < static_cast<int>(tokens.size()); ++i) {
    out[i] = 0.0f;
    if (targets[i] >= 0) wanted.rows.push_back(i);
  }
  wanted.use = [&](int index, const float* logits) {
    const int row = wanted.rows[index];
    out[row] = logits[targets[row]] - kernels_.log_sum_exp(logits, shape_.vocab);
  };
  forward(wanted);
}

int Engine::reuse(int id, std::span<const std::int32_t> tokens) {
  const std::lock_guard lock(mutex_);
  Sequence& s = sequence(id);
  const std::size_t before = s.tokens.size();
  if (options_.prefix_cache && !tokens.empty()) reuse_prefix(s, tokens);
  s.reused += static_cast<int>(s.tokens.size() - before);
  return static_cast<int>(s.tokens.size());
}

std::vector<std::vector<Scored>> Engine::score_places(const std::vector<StepInput>& inputs,
                                                      const std::vector<std::vector<Target>>& targets) {
  if (inputs.size() != targets.size()) throw std::invalid_argument("every input needs a list of targets");
  std::vector<std::vector<Scored>> scored(inputs.size());
  for (std::size_t n = 0; n < inputs.size(); ++n) {
    for (const Target& target : targets[n]) {
      if (target.place < 0 || target.place > static_cast<int>(inputs[n].drafts.size()))
        throw std::invalid_argument("place " + std::to_string(target.place) + " is none of the input's");
      if (target.token < 0 || target.token >= shape_.vocab)
        throw std::invalid_argument("target " + std::to_string(target.token) + " is outside the vocabulary");
    }
    scored[n].resize(targets[n].size());
  }
  const std::lock_guard lock(mutex_);
  append(inputs, false);
  const auto place_of = [&](int row) {
    const Run& run = runs_[rows_[row].run];
    return row - (run.row0 + run.count - 1 - run.drafts);
  };
  std::vector<bool> asked(rows_.size());
  for (std::size_t n = 0; n < inputs.size(); ++n)
    for (const Target& target : targets[n])
      asked[runs_[n].row0 + runs_[n].count - 1 - runs_[n].drafts + target.place] = true;
  Wanted wanted;
  for (std::size_t row = 0; row < asked.size(); ++row)
    if (asked[row]) wanted.rows.push_back(static_cast<int>(row));
  wanted.use = [&](int index, const float* logits) {
    const int row = wanted.rows[index], n = rows_[row].run, place = place_of(row);
    const float total = kernels_.log_sum_exp(logits, shape_.vocab);
    const auto best = std::max_element(logits, logits + shape_.vocab) - logits;
    for (std::size_t i = 0; i < targets[n].size(); ++i)
      if (targets[n][i].place == place)
        scored[n][i] = {logits[targets[n][i].token] - total, targets[n][i].token == best};
  };
  forward(wanted);
  if (options_.prefix_cache)
    for (const StepInput& input : inputs) share_pages(sequence(input.sequence));
  return scored;
}

void Engine::profile(bool on) {
  const std::lock_guard lock(mutex_);
  if (on)
    profile_.start(weights_, shape_.tied, options_.threads);
  else
    profile_.stop();
}

std::map<std::string, double> Engine::take_profile() {
  const std::lock_guard lock(mutex_);
  return profile_.take();
}

int Engine::free_tokens() {
  const std::lock_guard lock(mutex_);
  return free_pages() * kPageTokens;
}

} // namespace pomona
