#include "engine/weights.h"

#include <cstring>
#include <stdexcept>
#include <unordered_set>

namespace pomona {
namespace {

using Shape = std::vector<std::int64_t>;

std::string text(const Shape& shape) {
  std::string s = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) s += (i != 0 ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

class Reader {
 public:
  explicit Reader(const TensorMap& tensors) : tensors_(tensors) {}

  const TensorView* find(const std::string& name) {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) return nullptr;
    used_.insert(name);
    return &it->second;
  }

  const TensorView& get(const std::string& name, DType dtype, const Shape& shape) {
    const TensorView* t = find(name);
    if (t == nullptr) throw std::invalid_argument("tensor '" + name + "' is missing");
    if (t->shape != shape)
      throw std::invalid_argument("tensor '" + name + "' has shape " + text(t->shape) +
                                  ", the configuration says " + text(shape));
    if (t->dtype != dtype) throw std::invalid_argument("tensor '" + name + "' has an unexpected data type");
    return *t;
  }

  std::vector<float> vector(const std::string& name, std::int64_t size) {
    const TensorView* t = find(name);
    if (t == nullptr) throw std::invalid_argument("tensor '" + name + "' is missing");
    get(name, t->dtype, {size});
    std::vector<float> out(size);
    for (std::int64_t i = 0; i < size; ++i) {
      if (t->dtype == DType::f32) {
        std::memcpy(&out[i], t->data + 4 * i, 4);
        continue;
      }
      std::uint16_t half = 0;
      if (t->dtype != DType::bf16 && t->dtype != DType::f16)
        throw std::invalid_argument("tensor '" + name + "' must be BF16, F16 or F32");
      std::memcpy(&half, t->data + 2 * i, 2);
      if (t->dtype == DType::f16) {
        out[i] = half_to_float(half);
      } else {
        const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
        std::memcpy(&out[i], &bits, 4);
      }
    }
    return out;
  }

  // `module` is the name without ".weight".
  Matrix matrix(const std::string& module, int rows, int cols) {
    const std::string weight = module + ".weight";
    const std::int64_t groups = rows / kGroupRows;
    Matrix m;
    m.rows = rows;
    m.cols = cols;
    if (const TensorView* indices = find(weight + "_indices")) {
      need_packable(weight, rows, cols);
      m.format = Format::palette;
      const TensorView* tables = find(weight + "_tables");
      const bool sound = tables != nullptr && tables->shape.size() == 3;
      const std::int64_t count = sound ? tables->shape[1] : 0, colors = sound ? tables->shape[2] : 0;
      if (count < 1 || cols % count != 0 || cols / count % kBlock != 0)
        throw std::invalid_argument("tensor '" + weight + "_tables' does not cut " + std::to_string(cols) +
                                    " columns into tables of a multiple of 64");
      if (colors != 16 && colors != 8 && colors != 4)
        throw std::invalid_argument("tensor '" + weight + "_tables' must hold tables of 16, 8 or 4 entries");
      m.bits = colors == 16 ? 4 : colors == 8 ? 3 : 2;
      get(weight + "_indices", DType::u8,
          m.bits == 3 ? Shape{groups, cols / 32, 3, 64} : Shape{groups, cols * m.bits / 32, 64});
      m.table_cols = static_cast<int>(cols / count);
      m.tables = reinterpret_cast<const std::int8_t*>(
          get(weight + "_tables", DType::i8, {groups, count, colors}).data);
      m.table_scales = reinterpret_cast<const std::uint16_t*>(
          get(weight + "_table_scales", DType::f16, {groups, count}).data);
      m.row_scales =
          reinterpret_cast<const std::uint16_t*>(get(weight + "_row_scales", DType::f16, {rows}).data);
      m.data = indices->data;
    } else if (const TensorView* bytes = find(weight + "_int8")) {
      need_packable(weight, rows, cols);
      m.format = Format::int8;
      get(weight + "_int8", DType::u8, {groups, cols / 4, 64});
      m.row_scales =
          reinterpret_cast<const std::uint16_t*>(get(weight + "_row_scales", DType::f16, {rows}).data);
      m.data = bytes->data;
    } else {
      m.format = Format::bf16;
      m.data = get(weight, DType::bf16, {rows, cols}).data;
    }
    return m;
  }

  void refuse_unused() const {
    for (const auto& [name, view] : tensors_)
      if (!used_.contains(name))
        throw std::invalid_argument("tensor '" + name + "' is not part of this architecture");
  }

 private:
  static void need_packable(const std::string& name, int rows, int cols) {
    if (rows % kGroupRows != 0 || cols % kBlock != 0)
      throw std::invalid_argument("packed matrix '" + name +
                                  "' needs a multiple of 16 rows and of 64 columns");
  }

  const TensorMap& tensors_;
  std::unordered_set<std::string> used_;
};

struct Part {
  const void* data;
  std::size_t bytes;
};

std::vector<Part> parts(const Matrix& m) {
  const std::size_t groups = m.groups();
  switch (m.format) {
    case Format::bf16:
      return {{m.data, 2 * static_cast<std::size_t>(m.rows) * m.cols}};
    case Format::int8:
      return {{m.data, groups * m.group_bytes()}, {m.row_scales, groups * 32}};
    case Format::palette:
      break;
  }
  const std::size_t tables = groups * m.tables_of_group();
  return {{m.data, groups * m.group_bytes()},
          {m.tables, tables * m.colors()},
          {m.table_scales, tables * 2},
          {m.row_scales, groups * 32}};
}

std::size_t total_bytes(const Matrix& m) {
  std::size_t bytes = 0;
  for (const Part& part : parts(m)) bytes += (part.bytes + 63) / 64 * 64;
  return bytes;
}

// Copies the parts of a packed matrix to `to`, points the matrix there, returns what was used.
std::size_t move_to(Matrix& m, std::uint8_t* to) {
  std::size_t offset = 0;
  std::vector<const std::uint8_t*> moved;
  for (const Part& part : parts(m)) {
    std::memcpy(to + offset, part.data, part.bytes);
    moved.push_back(to + offset);
    offset += (part.bytes + 63) / 64 * 64;
  }
  m.data = moved[0];
  if (m.format == Format::palette) {
    m.tables = reinterpret_cast<const std::int8_t*>(moved[1]);
    m.table_scales = reinterpret_cast<const std::uint16_t*>(moved[2]);
  }
  m.row_scales = reinterpret_cast<const std::uint16_t*>(moved.back());
  return offset;
}

} // namespace

const ModelShape& checked(const ModelShape& s) {
  constexpr int kMaxSize = 1 << 24, kMaxLayers = 1 << 14; // products of two sizes fit into an int
  if (s.vocab < 1 || s.layers < 1 || s.heads < 1 || s.kv_heads < 1 || s.heads % s.kv_heads != 0 ||
      s.vocab > kMaxSize || s.layers > kMaxLayers || s.heads > kMaxSize / 512)
    throw std::invalid_argument("the model's sizes make no model");
  if (s.hidden < 16 || s.hidden % 16 != 0 || s.ffn < 16 || s.ffn % 16 != 0 || s.hidden > kMaxSize ||
      s.ffn > kMaxSize)
    throw std::invalid_argument("hidden_size and intermediate_size must be multiples of 16");
  if (s.head_dim < 16 || s.head_dim % 16 != 0 || s.head_dim > 512)
    throw std::invalid_argument("head_dim must be a multiple of 16, at most 512");
  return s;
}

Matrix read_matrix(const TensorMap& tensors, const std::string& module, int rows, int cols) {
  return Reader(tensors).matrix(module, rows, cols);
}

Weights::Weights(const ModelShape& shape, const TensorMap& tensors, bool huge_pages) {
  Reader reader(tensors);
  embedding = reader.matrix("model.embed_tokens", shape.vocab, shape.hidden);
  for (int l = 0; l < shape.layers; ++l) {
    const std::string prefix = "model.layers." + std::to_string(l) + ".", attention = prefix + "self_attn.";
    Layer layer;
    layer.q = reader.matrix(attention + "q_proj", shape.q_rows(), shape.hidden);
    layer.k = reader.matrix(attention + "k_proj", shape.kv_rows(), shape.hidden);
    layer.v = reader.matrix(attention + "v_proj", shape.kv_rows(), shape.hidden);
    layer.o = reader.matrix(attention + "o_proj", shape.hidden, shape.q_rows());
    layer.gate = reader.matrix(prefix + "mlp.gate_proj", shape.ffn, shape.hidden);
    layer.up = reader.matrix(prefix + "mlp.up_proj", shape.ffn, shape.hidden);
    layer.down = reader.matrix(prefix + "mlp.down_proj", shape.hidden, shape.ffn);
    layer.input_norm = reader.vector(prefix + "input_layernorm.weight", shape.hidden);
    layer.post_norm = reader.vector(prefix + "post_attention_layernorm.weight", shape.hidden);
    if (shape.qk_norm) {
      layer.q_norm = reader.vector(attention + "q_norm.weight", shape.head_dim);
      layer.k_norm = reader.vector(attention + "k_norm.weight", shape.head_dim);
    }
    if (shape.qkv_bias) {
      for (const auto& [name, rows] :
           {std::pair{"q_proj.bias", shape.q_rows()}, std::pair{"k_proj.bias", shape.kv_rows()},
            std::pair{"v_proj.bias", shape.kv_rows()}}) {
        const std::vector<float> bias = reader.vector(attention + name, rows);
        layer.qkv_bias.insert(layer.qkv_bias.end(), bias.begin(), bias.end());
      }
    }
    layers.push_back(std::move(layer));
  }
  final_norm = reader.vector("model.norm.weight", shape.hidden);
  head = shape.tied ? embedding : reader.matrix("lm_head", shape.vocab, shape.hidden);
  reader.refuse_unused();

  std::vector<Matrix*> streamed;
  for (Layer& layer : layers)
    for (Matrix* m : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
      streamed.push_back(m);
  streamed.push_back(&head);
  std::size_t arena_bytes = 0;
  for (const Matrix* m : streamed) {
    bytes_per_token_ += total_bytes(*m);
    if (huge_pages && m->format != Format::bf16) arena_bytes += total_bytes(*m);
  }
  arena_ = HugeBuffer(arena_bytes);
  std::size_t offset = 0;
  if (huge_pages)
    for (Matrix* m : streamed)
      if (m->format != Format::bf16) offset += move_to(*m, arena_.data() + offset);
  if (shape.tied) embedding = head;
}

} // namespace pomona
