// Fuzzes the making of adapters: tensors missing, renamed, doubled, of other types, shapes and values, scales
// that are no numbers, models of other sizes. An adapter is made or std::invalid_argument is thrown; one that
// is made can be run, and a sequence beside it in the batch is not touched.
#include <algorithm>
#include <array>
#include <cstring>

#include "tests/fuzz_input.h"
#include "tests/random_model.h"

namespace pomona::testing {
namespace {

constexpr const char* kNames[] = {"",
                                  ".lora_A.weight",
                                  "model.layers.0.self_attn.q_proj",
                                  "model.layers.0.self_attn.q_proj.lora_A.weight",
                                  "model.layers.0.self_attn.q_proj.lora_C.weight",
                                  "model.layers.1.mlp.down_proj.lora_B.weight",
                                  "model.layers.2.mlp.down_proj",
                                  "model.layers.-1.mlp.down_proj",
                                  "model.layers.0.mlp.down_proj.lora_B.weight.lora_B.weight",
                                  "model.norm"};

struct World {
  ModelShape shape = tiny_shape();
  Tensors model = random_model(shape, 71, Format::palette, true);
  std::unique_ptr<Engine> engine;
  std::vector<std::int32_t> prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18};
  std::vector<int> expected;

  World() {
    engine = std::make_unique<Engine>(shape, model.map(), EngineOptions{1, "auto", 256, 64, true, false});
    expected = greedy(*engine, prompt, 3);
  }
};

World& world() {
  static World w;
  return w;
}

std::string some_name(FuzzInput& in, const AdapterParts& parts) {
  if (in.one_in(3) || parts.scales.empty()) return kNames[in.integer(0, std::size(kNames) - 1)];
  const std::string& module = parts.scales[in.integer(0, static_cast<int>(parts.scales.size()) - 1)].first;
  return module + (in.one_in(2) ? ".lora_A.weight" : ".lora_B.weight");
}

void mutate(FuzzInput& in, AdapterParts& parts, const ModelShape& shape) {
  const std::string name = some_name(in, parts);
  switch (in.integer(0, 6)) {
    case 0:
      parts.tensors.erase(name);
      return;
    case 1: { // a tensor of any type and shape
      constexpr DType kTypes[] = {DType::bf16, DType::f16, DType::f32, DType::i8, DType::u8};
      const int sizes[] = {
          0, 1, 2, 3, 5, 63, 64, 65, shape.hidden, shape.ffn, shape.q_rows(), shape.kv_rows()};
      std::vector<std::int64_t> dims(in.one_in(4) ? in.integer(0, 4) : 2);
      std::int64_t elements = 1;
      for (std::int64_t& d : dims) {
        d = sizes[in.integer(0, std::size(sizes) - 1)];
        if (elements * d > 1 << 16) d = 1;
        elements *= std::max<std::int64_t>(d, 1);
      }
      const DType dtype = kTypes[in.integer(0, 4)];
      const auto width = dtype == DType::f32 ? 4 : dtype == DType::i8 || dtype == DType::u8 ? 1 : 2;
      std::uint8_t* bytes = parts.tensors.add(name, dtype, dims);
      for (const std::int64_t d : dims) elements = d == 0 ? 0 : elements;
      for (std::int64_t i = 0; i < elements * width; ++i) bytes[i] = i % 4 == 3 ? in.byte() : 0x40;
      return;
    }
    case 2: { // hostile values in a good tensor
      const auto it = parts.tensors.map().find(name);
      if (it == parts.tensors.map().end() || it->second.dtype != DType::f32) return;
      const float value = in.real();
      auto* bytes = const_cast<std::uint8_t*>(it->second.data);
      std::size_t count = 1;
      for (const std::int64_t n : it->second.shape) count *= static_cast<std::size_t>(n);
      for (std::size_t i = in.byte(); i < count; i += 1 + in.byte()) std::memcpy(bytes + 4 * i, &value, 4);
      return;
    }
    case 3:
      if (!parts.scales.empty())
        parts.scales[in.integer(0, static_cast<int>(parts.scales.size()) - 1)].second = in.real();
      return;
    case 4:
      if (!parts.scales.empty())
        parts.scales.erase(parts.scales.begin() + in.integer(0, static_cast<int>(parts.scales.size()) - 1));
      return;
    case 5:
      parts.scales.emplace_back(in.one_in(2) ? name : name.substr(0, name.find(".lora_")), in.real());
      return;
    default: { // a module goes as a whole, so that what is left is good
      if (parts.scales.empty()) return;
      const auto it = parts.scales.begin() + in.integer(0, static_cast<int>(parts.scales.size()) - 1);
      parts.tensors.erase(it->first + ".lora_A.weight");
      parts.tensors.erase(it->first + ".lora_B.weight");
      parts.scales.erase(it);
    }
  }
}

// The adapter's sequence and one without, in one batch.
void run_beside(const std::shared_ptr<const Adapter>& adapter) {
  World& w = world();
  const int plain = w.engine->new_sequence(), adapted = w.engine->new_sequence(adapter);
  std::vector<std::int32_t> next = w.prompt, other = {3, 1, 4, 1, 5};
  for (const int expected : w.expected) {
    const auto sampled = w.engine->step({{adapted, other, {}, {}}, {plain, next, {}, {}}});
    other = sampled[0];
    next = sampled[1];
    expect(next.at(0) == expected, "a sequence does not see its neighbour's adapter");
    expect(other.at(0) >= 0 && other.at(0) < w.shape.vocab, "a sampled token is one of the vocabulary");
  }
  w.engine->free_sequence(plain);
  w.engine->free_sequence(adapted);
  expect(w.engine->free_tokens() == w.engine->kv_tokens(), "all memory is free when all sequences are");
}

void run(FuzzInput in) {
  ModelShape shape = world().shape;
  if (in.one_in(8)) {
    int* sizes[] = {&shape.hidden,   &shape.ffn,      &shape.layers, &shape.heads,
                    &shape.kv_heads, &shape.head_dim, &shape.vocab};
    int& size = *sizes[in.integer(0, std::size(sizes) - 1)];
    size = in.one_in(2) ? size * 2 : in.wild(0, 300);
  }
  bool sound = true; // whether there can be a good adapter for these sizes, and a small one
  try {
    checked(shape);
    sound = std::max({shape.hidden, shape.ffn, shape.q_rows(), 64 * shape.layers}) <= 512;
  } catch (const std::invalid_argument&) {
    sound = false;
  }
  AdapterParts parts = random_adapter(sound ? shape : world().shape, in.integer(1, 9), in.byte());
  for (int mutations = in.one_in(4) ? 0 : in.integer(0, 5); mutations > 0; --mutations)
    mutate(in, parts, world().shape);
  std::shared_ptr<const Adapter> adapter;
  try {
    adapter = make_adapter(shape, parts);
  } catch (const std::invalid_argument&) {
    return;
  }
  const auto sizes_of = [](const ModelShape& s) {
    return std::array{s.layers, s.hidden, s.ffn, s.q_rows(), s.kv_rows()};
  };
  if (sizes_of(shape) == sizes_of(world().shape)) {
    run_beside(adapter);
    return;
  }
  bool refused = false;
  try {
    world().engine->new_sequence(adapter);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  expect(refused, "an adapter of another model is refused");
}

} // namespace
} // namespace pomona::testing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  pomona::testing::run(pomona::testing::FuzzInput(data, size));
  return 0;
}
