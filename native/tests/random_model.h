// Random numbers, and small random models and adapters built in memory, for the native tests and fuzzers.
// Everything follows from a seed. Buffers have exactly the size that is asked for, so that a sanitizer sees
// every step beyond them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/adapter.h"
#include "engine/engine.h"
#include "engine/weights.h"

namespace pomona::testing {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();           // splitmix64
  int integer(int low, int high); // both included
  bool chance(double p) { return uniform() < p; }
  double uniform(); // [0, 1)
  float normal();
  std::vector<float> normals(std::size_t count, float size = 1.0f);

 private:
  std::uint64_t state_;
};

// A buffer of `count` elements that starts at a multiple of 64 bytes.
template <class T>
class Aligned {
 public:
  explicit Aligned(std::size_t count, T value = T{})
      : data_(static_cast<T*>(::operator new (count * sizeof(T) + (count == 0), std::align_val_t{64}))),
        count_(count) {
    for (std::size_t i = 0; i < count; ++i) data_[i] = value;
  }
  ~Aligned() { ::operator delete (data_, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }

 private:
  T* data_;
  std::size_t count_;
};

// Named tensors together with their bytes.
class Tensors {
 public:
  // Returns the bytes, zero so far. Any name, shape and type may be asked for; a negative size counts as 0.
  std::uint8_t* add(const std::string& name, DType dtype, std::vector<std::int64_t> shape);
  void add_floats(const std::string& name, DType dtype, std::vector<std::int64_t> shape,
                  const std::vector<float>& values); // bf16, f16 or f32
  void erase(const std::string& name) { map_.erase(name); }
  const TensorMap& map() const { return map_; }

 private:
  TensorMap map_;
  std::vector<std::unique_ptr<Aligned<std::uint8_t>>> bytes_;
};

// Adds the tensors of `module` [rows, cols]: random weights of variance 1 / cols. bits, table_cols: of a
// palette.
void add_matrix(Tensors& tensors, const std::string& module, Format format, int rows, int cols, int bits,
                int table_cols, Random& random);

// 2 layers, 4 query heads on 2 key/value heads, 160 tokens of vocabulary, 512 positions.
ModelShape small_shape();
// Smaller yet, for the fuzzers: most of the time should go into the engine's bookkeeping.
ModelShape tiny_shape();

// Layers of `format`; `mixed`: the formats take turns. Palettes of 4, 3 and 2 bits; the embedding in int8, or
// a palette of 3 bits when mixed.
Tensors random_model(const ModelShape& shape, std::uint64_t seed, Format format, bool mixed = false);

struct AdapterParts {
  Tensors tensors;
  std::vector<std::pair<std::string, float>> scales;
};
// Rank `rank` on all projections; strong enough to change what the model says.
AdapterParts random_adapter(const ModelShape& shape, int rank, std::uint64_t seed);
std::shared_ptr<const Adapter> make_adapter(const ModelShape& shape, const AdapterParts& parts,
                                            Format format = Format::bf16);

std::vector<std::int32_t> random_tokens(const ModelShape& shape, int count, Random& random);

// Greedy tokens of one sequence: the prompt, then `count` more steps. The sequence is new and freed again.
std::vector<int> greedy(Engine& engine, const std::vector<std::int32_t>& prompt, int count,
                        std::shared_ptr<const Adapter> adapter = nullptr);

// The names of available_kernels().
std::vector<std::string> instruction_sets();

} // namespace pomona::testing
