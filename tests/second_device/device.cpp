// A second device for torch (its PrivateUse1 backend): memory of its own, counted and limited, and the CPU's kernels.
//
// What a GPU would refuse is refused: an operation with tensors of two devices, and an allocation beyond the limit. So a
// machine without a GPU can show that everything a run reads is where it runs, and how much memory a run takes.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <mutex>
#include <unordered_map>

namespace {

using c10::DeviceIndex, c10::IntArrayRef, c10::SymInt, c10::SymIntArrayRef, at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr auto KIND = c10::DeviceType::PrivateUse1;

// memory -------------------------------------------------------------------------------------------

std::mutex lock;
std::unordered_map<void*, int64_t> sizes;
int64_t used = 0, peak = 0, limit = int64_t(4) << 30, reads = 0;

void release(void* block) {
  if (block == nullptr) return;
  std::lock_guard<std::mutex> guard(lock);
  used -= sizes.at(block);
  sizes.erase(block);
  c10::free_cpu(block);
}

struct Allocator final : at::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, c10::Device(KIND, 0)};
    std::lock_guard<std::mutex> guard(lock);
    TORCH_CHECK_WITH(OutOfMemoryError, used + int64_t(bytes) <= limit, "second device out of memory: ", bytes, " bytes wanted, ",
                     limit - used, " of ", limit, " free");
    void* block = c10::alloc_cpu(bytes);
    sizes[block] = bytes;
    used += bytes;
    peak = std::max(peak, used);
    return {block, block, &release, c10::Device(KIND, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Allocator allocator;
REGISTER_ALLOCATOR(KIND, &allocator);

// what torch asks of a device ----------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = KIND;
  Guard() = default;
  explicit Guard(c10::DeviceType) {}
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return {KIND, 0}; }
  c10::Device getDevice() const override { return {KIND, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void synchronizeDevice(DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  Hooks() { at::RegisterPrivateUse1HooksInterface(this); }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::DeviceType::CPU); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto block = allocator.allocate(bytes);
    if (storage.data() != nullptr) std::memcpy(block.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(block));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};
Hooks hooks;

// operations ---------------------------------------------------------------------------------------

// the same memory, as the CPU's kernels take it
Tensor on_cpu(const Tensor& x) {
  if (x.device().type() != KIND) return x;
  void* data = x.storage().nbytes() ? const_cast<void*>(x.const_data_ptr()) : nullptr;
  return at::from_blob(data, x.sizes(), x.strides(), [x](void*) {}, at::TensorOptions().dtype(x.dtype()));
}

OptionalTensor on_cpu(const OptionalTensor& x) { return x && x->defined() ? OptionalTensor(on_cpu(*x)) : std::nullopt; }

void check_one_device(at::ArrayRef<Tensor> tensors, const std::string& what) {
  bool here = false, elsewhere = false;
  for (const Tensor& x : tensors)
    if (x.defined()) (x.device().type() == KIND ? here : elsewhere) |= x.device().type() == KIND || x.dim() > 0;
  TORCH_CHECK(!here || !elsewhere, what, " got tensors of the CPU and of the second device");
}

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  return Tensor(at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format));
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
                     std::optional<bool>) {
  return Tensor(at::detail::empty_strided_generic(size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                                  c10::dtype_or_default(dtype)));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

const Tensor& resize_(const Tensor& x, IntArrayRef size, std::optional<at::MemoryFormat>) {
  auto* impl = x.unsafeGetTensorImpl();
  int64_t bytes = (impl->storage_offset() + c10::multiply_integers(size)) * int64_t(x.itemsize());
  if (bytes > int64_t(x.storage().nbytes())) hooks.resizePrivateUse1Bytes(x.storage(), bytes);
  impl->set_sizes_contiguous(size);
  return x;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) resize_(to, from.sizes(), {});
  return copy_from(from, to, false);
}

at::Scalar read(const Tensor& x) {
  ++reads;
  return on_cpu(x).item();
}

Tensor as_strided(const Tensor& x, SymIntArrayRef size, SymIntArrayRef stride, std::optional<SymInt> offset) {
  return at::native::as_strided_tensorimpl(x, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                           offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt);
}

Tensor& set_storage(Tensor& x, at::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  auto* impl = x.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset);
  if (stride.empty()) impl->set_sizes_contiguous(size); else impl->set_sizes_and_strides(size, stride);
  return x;
}

Tensor convolution(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, SymIntArrayRef stride, SymIntArrayRef padding,
                   SymIntArrayRef dilation, bool transposed, SymIntArrayRef output_padding, SymInt groups) {
  check_one_device({x, weight, bias.value_or(Tensor())}, "convolution");
  return at::convolution_symint(on_cpu(x), on_cpu(weight), on_cpu(bias), stride, padding, dilation, transposed, output_padding, groups).to(x.device());
}

// attention that stores no scores, as a GPU's does
std::tuple<Tensor, Tensor, Tensor, Tensor, SymInt, SymInt, Tensor, Tensor, Tensor> attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias, double dropout, bool is_causal, bool, std::optional<double> scale) {
  check_one_device({q, k, v, bias.value_or(Tensor())}, "attention");
  Tensor out = at::scaled_dot_product_attention(on_cpu(q), on_cpu(k), on_cpu(v), on_cpu(bias), dropout, is_causal, scale).to(q.device());
  return {out, Tensor(), Tensor(), Tensor(), q.sym_size(2), k.sym_size(2), Tensor(), Tensor(), Tensor()};
}

int64_t fused(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, double, bool, std::optional<double>, bool) {
  return int64_t(sdp::SDPBackend::overrideable);
}

void everything_else(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  std::vector<Tensor> tensors;
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (value.isTensor()) tensors.push_back(value.toTensor());
    else if (value.isTensorList()) for (const Tensor& x : value.toTensorVector()) tensors.push_back(x);
    else if (value.isOptionalTensorList()) for (const auto& x : value.toOptionalTensorVector()) tensors.push_back(x.value_or(Tensor()));
  }
  check_one_device(tensors, op.schema().name());
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&everything_else>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("resize_", resize_);
  m.impl("_local_scalar_dense", read);
  m.impl("as_strided", as_strided);
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("view_as_complex", TORCH_FN(at::native::view_as_complex));
  m.impl("view_as_real", TORCH_FN(at::native::view_as_real));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("convolution_overrideable", convolution);
  m.impl("_scaled_dot_product_fused_attention_overrideable", attention);
}

TORCH_LIBRARY(second_device, m) {
  m.def("used", [] { return used; });
  m.def("peak", [] { return peak; });
  m.def("limit", [] { return limit; });
  m.def("reads", [] { return reads; });
  m.def("set_limit", [](int64_t bytes) { limit = bytes; });
  m.def("reset_peak", [] { peak = used; });
}

}  // namespace

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &fused)
}
