// The floating-point kernels of every instruction set against the scalar ones, bit for bit; and sums against
// the same in double, to rounding.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/vector_kernels.h"
#include "tests/random_model.h"

namespace pomona::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using Floats = std::vector<float>;

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Runs `test(kernels)` on every instruction set that is not the scalar one, and once more on that.
template <class F>
void on_all(F&& test) {
  for (const std::string& isa : instruction_sets()) {
    CAPTURE(isa);
    test(select_kernels(isa.c_str()));
  }
}

std::vector<std::uint16_t> to_bf16s(const Floats& values) {
  std::vector<std::uint16_t> out;
  for (const float v : values) out.push_back(to_bf16(v));
  return out;
}

float from_bf16(std::uint16_t v) {
  const std::uint32_t bits = static_cast<std::uint32_t>(v) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

} // namespace

TEST_CASE("the best instruction set comes first and scalar last") {
  const std::vector<std::string> names = instruction_sets();
  CHECK(names.back() == "scalar");
  CHECK(std::string(select_kernels("auto").name) == names.front());
  for (const std::string& name : names) CHECK(std::string(select_kernels(name.c_str()).name) == name);
  for (const char* name : {"", "sse2", "AVX2", "neon ", "scalar2"})
    CHECK_THROWS_AS(select_kernels(name), std::invalid_argument);
}

TEST_CASE("bf16 products have the scalar bits, are right to rounding and do not depend on the batch") {
  Random random(11);
  for (int round = 0; round < 30; ++round) {
    const int rows = random.integer(1, 70), cols = 16 * random.integer(1, 12), m = random.integer(1, 9);
    const std::vector<std::uint16_t> weights =
        to_bf16s(random.normals(static_cast<std::size_t>(rows) * cols));
    const Floats x = random.normals(static_cast<std::size_t>(m) * cols);
    Matrix w;
    w.rows = rows;
    w.cols = cols;
    w.data = reinterpret_cast<const std::uint8_t*>(weights.data());
    const int r0 = random.integer(0, rows - 1), r1 = random.integer(r0 + 1, rows);
    Floats scalar(static_cast<std::size_t>(m) * rows, 7.0f);
    scalar_kernels().matmul_bf16(w, r0, r1, x.data(), cols, m, scalar.data(), rows);
    on_all([&](const Kernels& k) {
      Floats y(static_cast<std::size_t>(m) * rows, 7.0f);
      k.matmul_bf16(w, r0, r1, x.data(), cols, m, y.data(), rows);
      REQUIRE(same_bits(y, scalar));
      for (int i = 0; i < m; ++i) {
        Floats alone(rows, 7.0f);
        k.matmul_bf16(w, r0, r1, x.data() + i * cols, cols, 1, alone.data(), rows);
        REQUIRE(std::memcmp(alone.data(), y.data() + i * rows, rows * sizeof(float)) == 0);
        for (int r = 0; r < rows; ++r) {
          double sum = 0.0, size = 0.0;
          for (int c = 0; c < cols; ++c) {
            const double term = static_cast<double>(from_bf16(weights[r * cols + c])) * x[i * cols + c];
            sum += term;
            size += std::fabs(term);
          }
          if (r < r0 || r >= r1)
            REQUIRE(alone[r] == 7.0f);
          else
            REQUIRE(std::fabs(alone[r] - sum) <= cols * 0x1p-24 * size);
        }
      }
    });
  }
}

// Bytes of `count` elements of an adapter's factor.
std::vector<std::uint8_t> random_elements(Random& random, Format format, std::size_t count) {
  std::vector<std::uint8_t> bytes(count * (format == Format::bf16 ? 2 : 1));
  if (format == Format::bf16) {
    const std::vector<std::uint16_t> values = to_bf16s(random.normals(count));
    std::memcpy(bytes.data(), values.data(), bytes.size());
  } else {
    for (std::uint8_t& byte : bytes)
      byte = static_cast<std::uint8_t>(static_cast<std::int8_t>(random.integer(-127, 127)));
  }
  return bytes;
}

TEST_CASE("both halves of an adapter have the scalar bits, in any tiles") {
  Random random(12);
  for (int round = 0; round < 40; ++round) {
    const Format format = random.chance(0.5) ? Format::bf16 : Format::int8;
    const int m = random.integer(1, 9), cols = 16 * random.integer(1, 20);
    LowerFactor a;
    a.format = format;
    a.lanes = kGroupRows * random.integer(1, 4);
    a.cols = cols;
    const std::vector<std::uint8_t> a_bytes =
        random_elements(random, format, static_cast<std::size_t>(a.lanes) * cols);
    const Floats a_scales = random.normals(a.units());
    a.data = a_bytes.data();
    a.scales = format == Format::int8 ? a_scales.data() : nullptr;
    const Floats x = random.normals(static_cast<std::size_t>(m) * cols);
    const auto lowered = [&](const Kernels& k, int m0, int m1) {
      Floats u(static_cast<std::size_t>(m1 - m0) * a.lanes);
      k.lower(a, 0, a.units(), x.data() + static_cast<std::size_t>(m0) * cols, cols, m1 - m0, u.data(),
              a.lanes, 0);
      return u;
    };
    const Floats u = lowered(scalar_kernels(), 0, m);

    const int groups = random.integer(1, 5), g0 = random.integer(0, groups - 1);
    RaiseFactor b;
    b.format = format;
    b.rows = groups * kGroupRows;
    b.rank = 2 * random.integer(1, a.lanes / 2);
    const std::vector<std::uint8_t> b_bytes =
        random_elements(random, format, static_cast<std::size_t>(b.rows) * b.rank);
    const Floats b_scales = random.normals(groups);
    b.data = b_bytes.data();
    b.scales = format == Format::int8 ? b_scales.data() : nullptr;
    const int g1 = random.integer(g0 + 1, groups);
    const Floats before = random.normals(static_cast<std::size_t>(m) * b.rows);
    Floats expected = before;
    scalar_kernels().raise(b, g0, g1, u.data(), a.lanes, m, expected.data(), b.rows);
    on_all([&](const Kernels& k) {
      REQUIRE(same_bits(lowered(k, 0, m), u));
      for (int row = 0; row < m; ++row)
        REQUIRE(std::memcmp(lowered(k, row, row + 1).data(),
                            u.data() + static_cast<std::size_t>(row) * a.lanes,
                            a.lanes * sizeof(float)) == 0);
      Floats y = before;
      k.raise(b, g0, g1, u.data(), a.lanes, m, y.data(), b.rows);
      REQUIRE(same_bits(y, expected));
    });
  }
}

TEST_CASE("the norm has the scalar bits and is right to rounding, also in place") {
  Random random(13);
  for (const int n : {16, 32, 64, 128, 576, 2048}) {
    const Floats x = random.normals(n, 3.0f), weight = random.normals(n);
    double squares = 0.0;
    for (const float v : x) squares += static_cast<double>(v) * v;
    const double factor = 1.0 / std::sqrt(squares / n + 1e-5);
    Floats scalar(n);
    scalar_kernels().rms_norm(x.data(), weight.data(), n, 1e-5f, scalar.data());
    on_all([&](const Kernels& k) {
      Floats y(n), in_place = x;
      k.rms_norm(x.data(), weight.data(), n, 1e-5f, y.data());
      k.rms_norm(in_place.data(), weight.data(), n, 1e-5f, in_place.data());
      REQUIRE(same_bits(y, in_place));
      REQUIRE(same_bits(y, scalar));
      for (int i = 0; i < n; ++i) {
        const double expected = x[i] * factor * weight[i];
        REQUIRE(std::fabs(y[i] - expected) <= (n + 8) * 0x1p-24 * std::fabs(expected));
      }
    });
  }
}

TEST_CASE("swiglu, add and rope have the scalar bits") {
  Random random(14);
  for (int round = 0; round < 40; ++round) {
    const int n = 16 * random.integer(1, 20);
    Floats gate = random.normals(n, random.chance(0.3) ? 60.0f : 2.0f), up = random.normals(n);
    gate[0] = -0.0f;
    gate[1] = -87.5f;
    gate[2] = 88.5f;
    gate[3] = -1e30f;
    gate[4] = 1e-42f;
    const int dim = 16 * random.integer(1, 16);
    const Floats head = random.normals(dim), cos = random.normals(dim / 2), sin = random.normals(dim / 2);
    Floats silu = gate, sum = gate, turned = head;
    scalar_kernels().swiglu(silu.data(), up.data(), n);
    scalar_kernels().add(sum.data(), up.data(), n);
    scalar_kernels().rope(turned.data(), dim, cos.data(), sin.data());
    for (int i = 0; i < n; ++i) {
      const double g = gate[i], expected = g / (1.0 + std::exp(-g)) * up[i];
      // The kernel takes exp(min(-g, 88)): below -88 the factor is e^-88 instead of 0.
      REQUIRE(std::fabs(silu[i] - expected) <=
              1e-6 * std::fabs(expected) + 1e-38 * std::fabs(g * up[i]) + 1e-44);
    }
    on_all([&](const Kernels& k) {
      Floats a = gate, b = gate, c = head;
      k.swiglu(a.data(), up.data(), n);
      k.add(b.data(), up.data(), n);
      k.rope(c.data(), dim, cos.data(), sin.data());
      REQUIRE(same_bits(a, silu));
      REQUIRE(same_bits(b, sum));
      REQUIRE(same_bits(c, turned));
    });
  }
}

TEST_CASE("keys and values are stored with the scalar bits, and attention over them is right") {
  Random random(15);
  for (int round = 0; round < 25; ++round) {
    const int d = 16 * random.integer(1, 8), tokens = random.integer(1, kChunkTokens);
    const int rows = random.integer(1, 13), pages = (tokens + kPageTokens - 1) / kPageTokens;
    const Format format = random.chance(0.5) ? Format::bf16 : Format::int8;
    const double tolerance = format == Format::bf16 ? 1e-4 : 0.1;
    const std::size_t page_size = page_block_bytes(format, d);
    const Floats q =
        random.normals(static_cast<std::size_t>(rows) * d, 1.0f / std::sqrt(static_cast<float>(d)));
    Floats keys = random.normals(static_cast<std::size_t>(tokens) * d, 2.0f);
    Floats values = random.normals(static_cast<std::size_t>(tokens) * d);
    std::vector<int> visible(rows);
    for (int& v : visible) v = random.chance(0.1) ? 0 : random.integer(1, tokens);

    const auto store = [&](const Kernels& k) {
      // What an earlier owner left: no numbers, in the places that no token of ours has.
      std::vector<std::uint8_t> cache(pages * page_size, 0xff);
      for (int t = 0; t < tokens; ++t)
        k.store_kv(format, cache.data() + t / kPageTokens * page_size, t % kPageTokens, keys.data() + t * d,
                   values.data() + t * d, d);
      return cache;
    };
    const std::vector<std::uint8_t> cache = store(scalar_kernels());
    std::vector<const std::uint8_t*> blocks;
    for (int p = 0; p < pages; ++p) blocks.push_back(cache.data() + p * page_size);

    struct Result {
      Floats max, sum, out;
    };
    const auto attend = [&](const Kernels& k, int first, int count) {
      Result r{Floats(count), Floats(count), Floats(static_cast<std::size_t>(count) * d)};
      k.attend({format, count, d, q.data() + first * d, blocks.data(), tokens, visible.data() + first,
                r.max.data(), r.sum.data(), r.out.data()});
      return r;
    };
    const Result expected = attend(scalar_kernels(), 0, rows);
    on_all([&](const Kernels& k) {
      REQUIRE(store(k) == cache);
      const Result together = attend(k, 0, rows);
      for (int i = 0; i < rows; ++i) {
        const Result alone = attend(k, i, 1);
        if (visible[i] == 0) {
          REQUIRE(together.sum[i] == 0.0f);
          continue;
        }
        REQUIRE(alone.max[0] == together.max[i]);
        REQUIRE(alone.sum[0] == together.sum[i]);
        REQUIRE(together.max[i] == expected.max[i]);
        REQUIRE(together.sum[i] == expected.sum[i]);
        REQUIRE(std::memcmp(alone.out.data(), together.out.data() + i * d, d * sizeof(float)) == 0);
        REQUIRE(std::memcmp(expected.out.data() + i * d, together.out.data() + i * d, d * sizeof(float)) ==
                0);
        // Against the plain definition, in double.
        std::vector<double> weights(visible[i]), mixed(d);
        double largest = -1e300, sum = 0.0;
        for (int t = 0; t < visible[i]; ++t) {
          for (int j = 0; j < d; ++j)
            weights[t] += static_cast<double>(q[i * d + j]) * from_bf16(to_bf16(keys[t * d + j]));
          largest = std::max(largest, weights[t]);
        }
        for (int t = 0; t < visible[i]; ++t) {
          const double w = std::exp(weights[t] - largest);
          sum += w;
          for (int j = 0; j < d; ++j) mixed[j] += w * from_bf16(to_bf16(values[t * d + j]));
        }
        for (int j = 0; j < d; ++j)
          REQUIRE(
              together.out[i * d + j] / together.sum[i] ==
              doctest::Approx(mixed[j] / sum).epsilon(tolerance).scale(format == Format::bf16 ? 0.1 : 1.0));
      }
    });
  }
}

TEST_CASE("folding chunks has the scalar bits") {
  Random random(16);
  for (int round = 0; round < 40; ++round) {
    const int d = 16 * random.integer(1, 8);
    const Floats out = random.normals(d), chunk = random.normals(d);
    const float max = random.chance(0.2) ? -1e30f : 10.0f * random.normal(),
                sum = random.chance(0.2) ? 0.0f : 3.0f;
    const float chunk_max = 10.0f * random.normal(), chunk_sum = random.chance(0.1) ? 0.0f : 2.0f;
    const auto fold = [&](const Kernels& k) {
      Floats result = out;
      float m = max, s = sum;
      k.fold(&m, &s, result.data(), chunk_max, chunk_sum, chunk.data(), d);
      result.push_back(m);
      result.push_back(s);
      return result;
    };
    const Floats expected = fold(scalar_kernels());
    on_all([&](const Kernels& k) { REQUIRE(same_bits(fold(k), expected)); });
  }
}

TEST_CASE("argmax takes the first of equals and passes over what is no number") {
  Random random(17);
  for (int round = 0; round < 300; ++round) {
    const int n = random.integer(1, 200);
    Floats x = random.normals(n, random.chance(0.2) ? 1e30f : 1.0f);
    for (int i = random.integer(0, 4); i > 0; --i) x[random.integer(0, n - 1)] = kNan;
    for (int i = random.integer(0, 4); i > 0; --i) x[random.integer(0, n - 1)] = -kInfinity;
    for (int i = random.integer(0, 3); i > 0; --i) x[random.integer(0, n - 1)] = 3.0f;
    if (random.chance(0.05)) std::fill(x.begin(), x.end(), random.chance(0.5) ? kNan : -kInfinity);
    if (random.chance(0.05)) x[random.integer(0, n - 1)] = kInfinity;
    int best = 0;
    float largest = -3.4e38f;
    for (int i = 0; i < n; ++i)
      if (x[i] > largest) largest = x[best = i];
    on_all([&](const Kernels& k) { REQUIRE(k.argmax(x.data(), n) == best); });
  }
}

TEST_CASE("log-sum-exp has the scalar bits and is right to rounding") {
  Random random(18);
  for (int round = 0; round < 100; ++round) {
    const int n = random.integer(1, 3000);
    Floats x = random.normals(n, static_cast<float>(1 << random.integer(0, 6)));
    if (random.chance(0.3)) x[random.integer(0, n - 1)] = -kInfinity;
    double largest = -1e300, sum = 0.0;
    for (const float v : x) largest = std::max<double>(largest, v);
    for (const float v : x) sum += std::exp(v - largest);
    if (!std::isfinite(largest)) continue;
    const double expected = largest + std::log(sum);
    const float scalar = scalar_kernels().log_sum_exp(x.data(), n);
    on_all([&](const Kernels& k) {
      REQUIRE(k.log_sum_exp(x.data(), n) == scalar);
      REQUIRE(k.log_sum_exp(x.data(), n) == doctest::Approx(expected).epsilon(1e-6).scale(1.0));
    });
  }
}

} // namespace pomona::testing
