// pomona._native: palettes.
#include <span>

#include "bindings.h"
#include "compression/compensate.h"
#include "kernels/kernels.h"

namespace pomona {
namespace {

nb::dict to_dict(Palettes p, int cols, int bits) {
  const std::size_t groups = p.groups, tables = p.tables, columns = cols, colors = std::size_t{1} << bits;
  const std::size_t line = bits == 3 ? 192 : 64, lines = kGroupRows * columns * bits / 8 / line;
  nb::dict result;
  result["indices"] = bits == 3 ? to_numpy(std::move(p.indices), {groups, lines, 3, 64})
                                : to_numpy(std::move(p.indices), {groups, lines, line});
  result["tables"] = to_numpy(std::move(p.entries), {groups, tables, colors});
  result["table_scales"] = to_numpy(std::move(p.table_scales), {groups, tables});
  result["row_scales"] = to_numpy(std::move(p.row_scales), {groups * 16});
  result["squared_error"] = p.squared_error;
  result["squared_norm"] = p.squared_norm;
  return result;
}

nb::dict palettize_array(Input<float, 2> weights, Input<float, 1> importance, int bits, int table_columns,
                         int threads, bool better_scales) {
  const int rows = static_cast<int>(weights.shape(0)), cols = static_cast<int>(weights.shape(1));
  Palettes p;
  {
    const nb::gil_scoped_release release;
    p = palettize({weights.data(), weights.size()}, rows, cols, {importance.data(), importance.size()}, bits,
                  table_columns, better_scales ? RowScales::kBetter : RowScales::kRootMeanSquare, threads);
  }
  return to_dict(std::move(p), cols, bits);
}

Array<float> cholesky_array(Input<float, 2> moment, float keep, Input<float, 1> added,
                            Input<std::int32_t, 1> order, int threads) {
  const std::size_t cols = added.size();
  std::vector<float> factor;
  {
    const nb::gil_scoped_release release;
    factor = damped_cholesky({{moment.data(), moment.size()}, keep, {added.data(), cols}},
                             {order.data(), order.size()}, threads);
  }
  return to_numpy(std::move(factor), {cols, cols});
}

nb::dict compensate_array(Input<float, 2> weights, Input<float, 1> importance, Input<float, 2> moment,
                          float keep, Input<float, 1> added, Input<float, 2> factor,
                          Input<std::int32_t, 1> order, int bits, int table_columns, int rounds, int sweeps,
                          bool scales, int threads) {
  const int rows = static_cast<int>(weights.shape(0)), cols = static_cast<int>(weights.shape(1));
  Palettes p;
  {
    const nb::gil_scoped_release release;
    p = compensate({weights.data(), weights.size()}, rows, cols, {importance.data(), importance.size()},
                   {{moment.data(), moment.size()}, keep, {added.data(), added.size()}},
                   {factor.data(), factor.size()}, {order.data(), order.size()}, bits, table_columns,
                   {rounds, sweeps, scales, threads});
  }
  return to_dict(std::move(p), cols, bits);
}

} // namespace

void bind_compression(nb::module_& m) {
  m.def("palettize", &palettize_array, "weights"_a, "importance"_a, "bits"_a, "table_columns"_a, "threads"_a,
        "better_scales"_a = false);
  m.def("damped_cholesky", &cholesky_array, "moment"_a, "keep"_a, "added"_a, "order"_a, "threads"_a);
  m.def("compensate", &compensate_array, "weights"_a, "importance"_a, "moment"_a, "keep"_a, "added"_a,
        "factor"_a, "order"_a, "bits"_a, "table_columns"_a, "rounds"_a, "sweeps"_a, "scales"_a, "threads"_a);
}

} // namespace pomona
