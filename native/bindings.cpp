// pomona._native: what Python sees of the native core. Every array is checked here; no pointer leaves its
// owner.
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <optional>
#include <span>

#include "bindings.h"
#include "engine/engine.h"
#include "kernels/kernels.h"

namespace pomona {
namespace {

DType dtype_of(const std::string& name) {
  if (name == "BF16") return DType::bf16;
  if (name == "F16") return DType::f16;
  if (name == "F32") return DType::f32;
  if (name == "I8") return DType::i8;
  if (name == "U8") return DType::u8;
  throw std::invalid_argument("data type " + name + " is not supported");
}

std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    default:
      return 1;
  }
}

// name -> (dtype, array). The arrays are kept alive by the engine that is made from them.
TensorMap tensor_map(const nb::dict& tensors, std::vector<AnyInput>& keep) {
  TensorMap map;
  for (auto [key, value] : tensors) {
    std::string name, dtype;
    AnyInput array;
    if (!nb::try_cast(key, name) || !nb::isinstance<nb::tuple>(value) || nb::len(value) != 2 ||
        !nb::try_cast(value[0], dtype) || !nb::try_cast(value[1], array))
      throw std::invalid_argument("tensors must be given as {name: (data type, array)}");
    TensorView view;
    view.dtype = dtype_of(dtype);
    if (array.itemsize() != size_of(view.dtype))
      throw std::invalid_argument("tensor '" + name + "' has elements of " +
                                  std::to_string(array.itemsize()) + " bytes");
    for (std::size_t i = 0; i < array.ndim(); ++i)
      view.shape.push_back(static_cast<std::int64_t>(array.shape(i)));
    view.data = static_cast<const std::uint8_t*>(array.data());
    keep.push_back(array);
    map.emplace(name, std::move(view));
  }
  return map;
}

ModelShape model_shape(const nb::dict& d) {
  ModelShape s;
  const auto integer = [&](const char* key) { return nb::cast<int>(d[key]); };
  const auto number = [&](const char* key) { return nb::cast<double>(d[key]); };
  s.vocab = integer("vocab");
  s.hidden = integer("hidden");
  s.ffn = integer("ffn");
  s.layers = integer("layers");
  s.heads = integer("heads");
  s.kv_heads = integer("kv_heads");
  s.head_dim = integer("head_dim");
  s.max_positions = integer("max_positions");
  s.rms_norm_eps = static_cast<float>(number("rms_norm_eps"));
  s.rope_theta = number("rope_theta");
  s.rope_factor = number("rope_factor");
  s.rope_low_freq = number("rope_low_freq");
  s.rope_high_freq = number("rope_high_freq");
  s.rope_original_positions = number("rope_original_positions");
  s.qk_norm = nb::cast<bool>(d["qk_norm"]);
  s.qkv_bias = nb::cast<bool>(d["qkv_bias"]);
  s.tied = nb::cast<bool>(d["tied"]);
  return s;
}

Format precision_of(const std::string& name) {
  if (name == "bf16") return Format::bf16;
  if (name == "int8") return Format::int8;
  throw std::invalid_argument("precision '" + name + "' is not bf16 or int8");
}

// Copies the tensors of an adapter; scales: module name -> alpha / rank.
std::shared_ptr<Adapter> make_adapter(const nb::dict& shape, const nb::dict& tensors, const nb::dict& scales,
                                      const std::string& precision) {
  std::vector<AnyInput> keep;
  const TensorMap map = tensor_map(tensors, keep);
  const ModelShape model = model_shape(shape);
  std::vector<std::pair<std::string, float>> factors;
  for (auto [module, scale] : scales)
    factors.emplace_back(nb::cast<std::string>(module), nb::cast<float>(scale));
  const Format format = precision_of(precision);
  const nb::gil_scoped_release release;
  return std::make_shared<Adapter>(model, map, factors, format);
}

// scale * B (A x) of one projection, for tests and benchmarks: [M, N]. The columns of A go in pieces of
// `units` units and are gathered, or with units = 0 in one.
Array<float> adapter_product(const Adapter& adapter, const std::string& isa, int layer, int projection,
                             Input<float, 2> x, int units) {
  if (layer < 0 || layer >= adapter.layers() || projection < 0 || projection >= kProjections)
    throw std::invalid_argument("no such layer or projection");
  const Lowering& lowering = adapter.lowering(layer, source_of(static_cast<Projection>(projection)));
  const Raising& raising = adapter.raising(layer, static_cast<Projection>(projection));
  const std::size_t m = x.shape(0), lanes = lowering.a.lanes, segments = lowering.a.segments();
  if (raising.b.rank == 0) throw std::invalid_argument("the projection is not adapted");
  if (x.shape(1) != static_cast<std::size_t>(lowering.a.cols) || units < 0)
    throw std::invalid_argument("sizes that are not the projection's");
  const std::size_t rows = raising.b.rows;
  const Kernels& kernels = select_kernels(isa.c_str());
  std::vector<float> u(m * lanes), partials(units > 0 ? m * segments * lanes : 0), y(m * rows);
  const int count = static_cast<int>(m), cols = lowering.a.cols;
  if (units == 0) kernels.lower(lowering.a, 0, lowering.a.units(), x.data(), cols, count, u.data(), lanes, 0);
  for (int unit = 0; units > 0 && unit < lowering.a.units(); unit += units)
    kernels.lower(lowering.a, unit, std::min(unit + units, lowering.a.units()), x.data(), cols, count,
                  partials.data(), segments * lanes, lanes);
  for (std::size_t row = 0; row < m; ++row) {
    if (units > 0)
      sum_segments(kernels, lowering, partials.data() + row * segments * lanes, &u[row * lanes]);
    else
      for (std::size_t lane = 0; lane < lanes; ++lane) u[row * lanes + lane] *= lowering.factors[lane];
  }
  kernels.raise(raising.b, 0, static_cast<int>(rows) / kGroupRows, u.data() + raising.lane, lanes, count,
                y.data(), rows);
  return to_numpy(std::move(y), {m, rows});
}

// The engine together with the arrays that its weights point into.
struct OwningEngine {
  std::vector<AnyInput> arrays;
  std::unique_ptr<Engine> engine;

  OwningEngine(const nb::dict& shape, const nb::dict& tensors, int threads, const std::string& isa,
               int kv_tokens, int batch_tokens, bool huge_pages, bool prefix_cache, bool partial_pages,
               const std::string& kv_cache) {
    const TensorMap map = tensor_map(tensors, arrays);
    const ModelShape model = model_shape(shape);
    const Format precision = precision_of(kv_cache);
    const nb::gil_scoped_release release;
    engine = std::make_unique<Engine>(model, map,
                                      EngineOptions{threads, isa, kv_tokens, batch_tokens, huge_pages,
                                                    prefix_cache, partial_pages, precision});
  }

  std::vector<std::vector<int>> step(const std::vector<StepInput>& inputs) {
    const nb::gil_scoped_release release;
    return engine->step(inputs);
  }

  void logits(int sequence, Input<std::int32_t, 1> tokens,
              nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> out) {
    if (out.shape(0) != tokens.shape(0) || out.shape(1) != static_cast<std::size_t>(engine->shape().vocab))
      throw std::invalid_argument("logits needs an output of shape [tokens, vocab]");
    const nb::gil_scoped_release release;
    engine->logits(sequence, {tokens.data(), tokens.size()}, out.data());
  }

  Array<float> score(int sequence, Input<std::int32_t, 1> tokens, Input<std::int32_t, 1> targets) {
    std::vector<float> out(tokens.size());
    {
      const nb::gil_scoped_release release;
      engine->score(sequence, {tokens.data(), tokens.size()}, {targets.data(), targets.size()}, out.data());
    }
    return to_numpy(std::move(out), {tokens.size()});
  }

  using Pairs = std::vector<std::pair<int, std::int32_t>>;

  std::vector<std::vector<std::pair<float, bool>>> score_places(const std::vector<StepInput>& inputs,
                                                                const std::vector<Pairs>& places) {
    const nb::gil_scoped_release release;
    std::vector<std::vector<Target>> targets;
    for (const Pairs& pairs : places) {
      targets.emplace_back();
      for (const auto& [place, token] : pairs) targets.back().push_back({place, token});
    }
    std::vector<std::vector<std::pair<float, bool>>> out;
    for (const std::vector<Scored>& row : engine->score_places(inputs, targets)) {
      out.emplace_back();
      for (const Scored& one : row) out.back().emplace_back(one.log_p, one.likeliest);
    }
    return out;
  }

  int reuse(int sequence, Input<std::int32_t, 1> tokens) {
    const nb::gil_scoped_release release;
    return engine->reuse(sequence, {tokens.data(), tokens.size()});
  }

  void run_layers(Input<std::int32_t, 1> tokens, int first, int last,
                  nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> residual) {
    if (residual.shape(0) != tokens.shape(0) ||
        residual.shape(1) != static_cast<std::size_t>(engine->shape().hidden))
      throw std::invalid_argument("the residual stream must be of shape [tokens, hidden]");
    const nb::gil_scoped_release release;
    engine->run_layers({tokens.data(), tokens.size()}, first, last, residual.data());
  }

  using Residual = std::optional<Input<float, 2>>;

  // The residual's data, checked against the tokens; null where none is read.
  const float* residual_of(const Residual& residual, std::size_t tokens, int first) const {
    if (first == 0) return nullptr;
    if (!residual || residual->shape(0) != tokens ||
        residual->shape(1) != static_cast<std::size_t>(engine->shape().hidden))
      throw std::invalid_argument("the residual stream must be of shape [tokens, hidden]");
    return residual->data();
  }

  Array<std::uint16_t> distributions(Input<std::int32_t, 1> tokens, int first, const Residual& residual) {
    const float* from = residual_of(residual, tokens.size(), first);
    const std::size_t vocab = engine->shape().vocab;
    std::vector<std::uint16_t> out(tokens.size() * vocab);
    {
      const nb::gil_scoped_release release;
      engine->distributions({tokens.data(), tokens.size()}, first, from, out.data());
    }
    return to_numpy(std::move(out), {tokens.size(), vocab});
  }

  Array<double> divergences(Input<std::int32_t, 1> tokens, Input<std::uint16_t, 2> reference, int first,
                            const Residual& residual) {
    const float* from = residual_of(residual, tokens.size(), first);
    if (reference.shape(0) != tokens.size() ||
        reference.shape(1) != static_cast<std::size_t>(engine->shape().vocab))
      throw std::invalid_argument("the reference must be of shape [tokens, vocab]");
    std::vector<double> out(tokens.size());
    {
      const nb::gil_scoped_release release;
      engine->divergences({tokens.data(), tokens.size()}, first, from, reference.data(), out.data());
    }
    return to_numpy(std::move(out), {tokens.size()});
  }

  // name -> (rows, sums of x_k^2 [K], sums of x_j x_k [K, K] or None)
  nb::dict take_moments() const {
    std::map<std::string, Moments> moments;
    {
      const nb::gil_scoped_release release;
      moments = engine->take_moments();
    }
    nb::dict result;
    for (auto& [name, m] : moments) {
      const std::size_t cols = m.squares.size();
      nb::object products = nb::none();
      if (!m.products.empty()) products = nb::cast(to_numpy(std::move(m.products), {cols, cols}));
      result[name.c_str()] = nb::make_tuple(m.rows, to_numpy(std::move(m.squares), {cols}), products);
    }
    return result;
  }
};

// A packed matrix times float activations, for tests and benchmarks of one kernel: quantise, multiply.
Array<float> multiply_packed(const std::string& isa, int rows, nb::dict tensors, Input<float, 2> x,
                             int threads) {
  std::vector<AnyInput> keep;
  const TensorMap map = tensor_map(tensors, keep);
  const int m = static_cast<int>(x.shape(0)), cols = static_cast<int>(x.shape(1));
  if (m < 1 || rows < 1 || cols < 1) throw std::invalid_argument("an empty product");
  if (cols % 16 != 0) throw std::invalid_argument("columns must be a multiple of 16");
  if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must be 1 .. 1024");
  const Matrix w = read_matrix(map, "w", rows, cols);
  const Kernels& kernels = select_kernels(isa.c_str());
  std::vector<float> y(static_cast<std::size_t>(m) * rows);
  {
    const nb::gil_scoped_release release;
    const std::size_t blocks = (cols + kBlock - 1) / kBlock;
    HugeArray<std::uint8_t> bytes(m * 2 * blocks * kBlock);
    HugeArray<float> scales(m * blocks);
    HugeArray<std::int32_t> offsets(m * blocks);
    HugeArray<std::uint8_t> fine(m * blocks);
    const QuantRows quantized{m, cols, bytes.data(), scales.data(), offsets.data(), fine.data()};
    if (w.format != Format::bf16)
      for (int i = 0; i < m; ++i)
        kernels.quantize(x.data() + static_cast<std::size_t>(i) * cols, quantized, i);
    ThreadPool pool(threads);
    std::vector<HugeArray<std::uint8_t>> scratch;
    for (int t = 0; t < threads; ++t) scratch.emplace_back(matmul_scratch(cols));
    pool.run([&](int t) {
      const auto [g0, g1] = share(w.groups(), t, threads);
      if (g0 == g1) return;
      if (w.format == Format::palette)
        kernels.matmul_palette(w, g0, g1, quantized, y.data(), rows, scratch[t].data());
      if (w.format == Format::int8)
        kernels.matmul_int8(w, g0, g1, quantized, y.data(), rows, scratch[t].data());
      if (w.format == Format::bf16)
        kernels.matmul_bf16(w, g0 * kGroupRows, std::min(g1 * kGroupRows, rows), x.data(), cols, m, y.data(),
                            rows);
    });
  }
  return to_numpy(std::move(y), {static_cast<std::size_t>(m), static_cast<std::size_t>(rows)});
}

int sample_logits(Input<float, 1> logits, const Sampling& sampling, Input<std::int32_t, 1> history,
                  std::int64_t position) {
  if (logits.size() == 0) throw std::invalid_argument("no logits");
  std::vector<float> copy(logits.data(), logits.data() + logits.size());
  const std::span<const std::int32_t> tokens(history.data(), history.size());
  for (const std::int32_t token : tokens)
    if (token < 0 || static_cast<std::size_t>(token) >= copy.size())
      throw std::invalid_argument("a history token is outside the vocabulary");
  for (const auto& [token, value] : sampling.bias)
    if (token < 0 || static_cast<std::size_t>(token) >= copy.size())
      throw std::invalid_argument("a token of the bias is outside the vocabulary");
  return sample(select_kernels("auto"), copy, sampling, tokens, position);
}

} // namespace
} // namespace pomona

NB_MODULE(_native, m) {
  using namespace pomona;
  m.doc() = "The native core of pomona: kernels, engine, palettisation.";

  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const KvCacheFull& e) {
      PyErr_SetString(PyExc_MemoryError, e.what());
    }
  });

  nb::class_<Sampling>(m, "Sampling")
      .def(
          "__init__",
          [](Sampling* s, float temperature, int top_k, float top_p, float min_p, float repetition_penalty,
             std::uint64_t seed, float presence_penalty, float frequency_penalty, std::int64_t answer_start,
             std::vector<std::pair<std::int32_t, float>> bias) {
            new (s) Sampling{temperature,
                             top_k,
                             top_p,
                             min_p,
                             repetition_penalty,
                             seed,
                             presence_penalty,
                             frequency_penalty,
                             answer_start,
                             std::move(bias)};
          },
          "temperature"_a = 0.0f, "top_k"_a = 0, "top_p"_a = 1.0f, "min_p"_a = 0.0f,
          "repetition_penalty"_a = 1.0f, "seed"_a = 0, "presence_penalty"_a = 0.0f,
          "frequency_penalty"_a = 0.0f, "answer_start"_a = 0,
          "bias"_a = std::vector<std::pair<std::int32_t, float>>{});

  nb::class_<Logprobs>(m, "Logprobs")
      .def(nb::new_([](int top) {
             if (top < 0 || top > kMaxTopLogprobs)
               throw std::invalid_argument("top must be 0 .. " + std::to_string(kMaxTopLogprobs));
             return std::make_shared<Logprobs>(top);
           }),
           "top"_a)
      .def("entries", [](const Logprobs& logprobs) {
        std::vector<std::pair<float, std::vector<std::pair<std::int32_t, float>>>> entries;
        for (const TokenLogprobs& entry : logprobs.entries()) entries.emplace_back(entry.chosen, entry.top);
        return entries;
      });

  nb::class_<LateMask>(m, "LateMask")
      .def(nb::new_([](std::size_t words) {
             if (words < 1 || words > 1 << 24) throw std::invalid_argument("words must be 1 .. 2^24");
             return std::make_shared<LateMask>(words);
           }),
           "words"_a)
      .def("array",
           [](LateMask& mask) {
             return Array<std::uint32_t>(mask.words().data(), {mask.size()}, nb::find(&mask));
           })
      .def("begin", &LateMask::begin)
      .def("done", &LateMask::done)
      .def(
          "wait", [](LateMask& mask) { mask.wait(); }, nb::call_guard<nb::gil_scoped_release>());

  nb::class_<StepInput>(m, "StepInput")
      .def(
          "__init__",
          [](StepInput* s, int sequence, std::vector<std::int32_t> tokens, const Sampling& sampling,
             std::optional<Input<std::int32_t, 1>> mask, std::vector<std::int32_t> drafts,
             std::shared_ptr<LateMask> late_mask, std::shared_ptr<Logprobs> logprobs) {
            if (mask && late_mask) throw std::invalid_argument("two token masks for one input");
            new (s) StepInput{sequence,          std::move(tokens),    sampling,           {},
                              std::move(drafts), std::move(late_mask), std::move(logprobs)};
            if (mask) s->mask.assign(mask->data(), mask->data() + mask->size());
          },
          "sequence"_a, "tokens"_a, "sampling"_a, "mask"_a.none() = nb::none(),
          "drafts"_a = std::vector<std::int32_t>{}, "late_mask"_a.none() = nb::none(),
          "logprobs"_a.none() = nb::none());

  nb::class_<Adapter>(m, "Adapter")
      .def(nb::new_(&make_adapter), "shape"_a, "tensors"_a, "scales"_a, "precision"_a)
      .def("product", &adapter_product, "isa"_a, "layer"_a, "projection"_a, "x"_a, "units"_a)
      .def_prop_ro("bytes", &Adapter::bytes);

  // Whoever waits for the engine must let Python go on meanwhile: the step that it waits for may itself wait
  // for a mask that a Python thread computes.
  const nb::call_guard<nb::gil_scoped_release> unlocked;

  nb::class_<OwningEngine>(m, "Engine")
      .def(nb::init<const nb::dict&, const nb::dict&, int, const std::string&, int, int, bool, bool, bool,
                    const std::string&>(),
           "shape"_a, "tensors"_a, "threads"_a, "isa"_a, "kv_tokens"_a, "batch_tokens"_a, "huge_pages"_a,
           "prefix_cache"_a, "partial_pages"_a = false, "kv_cache"_a = "bf16")
      .def(
          "new_sequence",
          [](OwningEngine& e, std::shared_ptr<Adapter> adapter) {
            const nb::gil_scoped_release release;
            return e.engine->new_sequence(std::move(adapter));
          },
          "adapter"_a.none() = nb::none())
      .def(
          "free_sequence", [](OwningEngine& e, int id) { e.engine->free_sequence(id); }, "sequence"_a,
          unlocked)
      .def(
          "length", [](OwningEngine& e, int id) { return e.engine->length(id); }, "sequence"_a, unlocked)
      .def(
          "truncate", [](OwningEngine& e, int id, int length) { e.engine->truncate(id, length); },
          "sequence"_a, "length"_a, unlocked)
      .def(
          "reused_tokens", [](OwningEngine& e, int id) { return e.engine->reused_tokens(id); }, "sequence"_a,
          unlocked)
      .def("step", &OwningEngine::step, "inputs"_a)
      .def("logits", &OwningEngine::logits, "sequence"_a, "tokens"_a, "out"_a)
      .def("score", &OwningEngine::score, "sequence"_a, "tokens"_a, "targets"_a)
      .def("score_places", &OwningEngine::score_places, "inputs"_a, "targets"_a)
      .def("reuse", &OwningEngine::reuse, "sequence"_a, "tokens"_a)
      .def(
          "collect_moments",
          [](OwningEngine& e, const std::vector<std::string>& modules, bool products) {
            e.engine->collect_moments(modules, products);
          },
          "modules"_a, "products"_a, unlocked)
      .def("run_layers", &OwningEngine::run_layers, "tokens"_a, "first"_a, "last"_a, "residual"_a)
      .def("distributions", &OwningEngine::distributions, "tokens"_a, "first"_a,
           "residual"_a.none() = nb::none())
      .def("divergences", &OwningEngine::divergences, "tokens"_a, "reference"_a, "first"_a,
           "residual"_a.none() = nb::none())
      .def("take_moments", &OwningEngine::take_moments)
      .def(
          "profile", [](OwningEngine& e, bool on) { e.engine->profile(on); }, "on"_a, unlocked)
      .def(
          "take_profile", [](OwningEngine& e) { return e.engine->take_profile(); }, unlocked)
      .def_prop_ro("isa", [](const OwningEngine& e) { return std::string(e.engine->isa()); })
      .def_prop_ro("threads", [](const OwningEngine& e) { return e.engine->threads(); })
      .def_prop_ro("batch_tokens", [](const OwningEngine& e) { return e.engine->batch_tokens(); })
      .def_prop_ro("kv_tokens", [](const OwningEngine& e) { return e.engine->kv_tokens(); })
      .def_prop_ro("free_tokens", [](const OwningEngine& e) { return e.engine->free_tokens(); })
      .def_prop_ro("bytes_per_token", [](const OwningEngine& e) { return e.engine->bytes_per_token(); })
      .def_prop_ro("kv_bytes_per_token",
                   [](const OwningEngine& e) { return e.engine->kv_bytes_per_token(); });

  m.def("available_isas", [] { return std::string(available_kernels()); });
  m.def("rounding_isas", [] { return std::string(rounding_kernels()); });
  m.def("measure_bandwidth", &measure_bandwidth, "bytes"_a, "threads"_a,
        nb::call_guard<nb::gil_scoped_release>());
  bind_compression(m);
  m.def("multiply_packed", &multiply_packed, "isa"_a, "rows"_a, "tensors"_a, "x"_a, "threads"_a);
  m.def("sample", &sample_logits, "logits"_a, "sampling"_a, "history"_a, "position"_a);
}
