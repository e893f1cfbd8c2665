#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <onnxruntime_cxx_api.h>

#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/files.hpp>
#include <ezaudio/detail/manifest.hpp>
#include <ezaudio/detail/text_format.hpp>

namespace ezaudio::detail {

using Shape = std::vector<std::int64_t>;

/// A float tensor on the host.
struct Tensor {
    Shape shape;
    std::vector<float> data;  // C order
};

inline std::size_t element_count(const Shape& shape) {
    std::size_t count = 1;
    for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
    return count;
}

inline Tensor zeros(Shape shape) {
    const std::size_t count = element_count(shape);
    return {std::move(shape), std::vector<float>(count)};
}

inline const Ort::MemoryInfo& host_memory() {
    static const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    return memory;
}

/// A graph's input over memory that the caller keeps alive and does not change until the graph has run. `data` may be
/// null where there are no elements.
template <typename Element>
Ort::Value view(const Element* data, std::size_t count, const Shape& shape) {
    // ONNX Runtime takes a pointer to non-const, and does not write through it.
    return Ort::Value::CreateTensor<Element>(host_memory(), const_cast<Element*>(data), count, shape.data(),
                                             shape.size());
}

inline Ort::Value view(const Tensor& tensor) { return view(tensor.data.data(), tensor.data.size(), tensor.shape); }

/// Held while the one ONNX Runtime environment of a process is changed, or read to open a session: older versions do not
/// guard it against Pipelines that are made in several threads.
inline std::mutex& environment_mutex() {
    static std::mutex mutex;
    return mutex;
}

/// Inputs of one run, by name.
using Inputs = std::map<std::string, const Ort::Value*>;

/// ONNX Runtime sessions for the graphs of a bundle, opened when first used and kept until released.
class Sessions {
public:
    /// `low_memory`: what ONNX Runtime frees goes back to the system, not into its arena.
    Sessions(std::filesystem::path folder, const Manifest& manifest, int threads, const std::string& device,
             bool low_memory = false)
        : folder_(std::move(folder)), manifest_(&manifest) {
        options_.SetIntraOpNumThreads(threads);
        options_.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
        if (integers_overflow()) options_.AddConfigEntry("session.x64quantprecision", "1");
        choose_device(device);
        if (device == "cpu") share_memory(low_memory);
        once_options_ = options_.Clone();
        // Their weights stay in the bundle's files, mapped, where products would copy them into an order of their own.
        if (device == "cpu") once_options_.AddConfigEntry("session.disable_prepacking", "1");
    }

    /// Outputs in the order of the manifest, a null value for the one called `unread`, which is not asked for.
    ///
    /// Raises BundleError when the graph is not there or ONNX Runtime refuses it.
    std::vector<Ort::Value> run(const std::string& name, const Inputs& inputs, const char* unread = "") {
        Ort::Session& session = open(name);
        const GraphEntry& graph = manifest_->graphs.at(name);
        std::vector<const char*> input_names, output_names;
        std::vector<const OrtValue*> values;
        for (const TensorSpec& spec : graph.inputs) {
            const auto found = inputs.find(spec.name);
            if (found == inputs.end()) refuse(name, "wants the unknown input " + python_repr(spec.name));
            input_names.push_back(spec.name.c_str());
            values.push_back(*found->second);
        }
        for (const TensorSpec& spec : graph.outputs) {
            if (spec.name != unread) output_names.push_back(spec.name.c_str());
        }
        std::vector<OrtValue*> outputs(output_names.size());
        try {
            Ort::ThrowOnError(Ort::GetApi().Run(session, nullptr, input_names.data(), values.data(), values.size(),
                                                output_names.data(), output_names.size(), outputs.data()));
        } catch (const Ort::Exception& error) {
            refuse_without_memory(name, first_line(error));
            refuse(name, "cannot run: " + first_line(error));
        }
        std::vector<Ort::Value> results;
        results.reserve(graph.outputs.size());
        auto output = outputs.begin();
        for (const TensorSpec& spec : graph.outputs) results.emplace_back(spec.name != unread ? *output++ : nullptr);
        return results;
    }

    /// The output called `output` of one evaluation; it must have this shape. Raises BundleError.
    Ort::Value take(const std::string& name, std::vector<Ort::Value>& outputs, const char* output,
                    const Shape& shape) const {
        const std::vector<TensorSpec>& specs = manifest_->graphs.at(name).outputs;
        for (std::size_t index = 0; index < specs.size(); ++index) {
            if (specs[index].name != output) continue;
            const auto info = outputs[index].GetTensorTypeAndShapeInfo();
            if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || info.GetShape() != shape) {
                refuse(name, "gives " + python_repr(output) + " of another type or shape than the model has");
            }
            return std::move(outputs[index]);
        }
        refuse(name, "has no output " + python_repr(output));
    }

    bool has(const std::string& name) const { return manifest_->graphs.count(name) != 0; }

    /// Closes every session; it is opened again when used.
    void release() { sessions_.clear(); }

private:
    [[noreturn]] void refuse(const std::string& name, const std::string& what) const {
        throw BundleError("graph " + python_repr(name) + " of the bundle at '" + path_text(folder_) + "' " + what +
                          ": export the bundle again");
    }

    /// What ONNX Runtime says, without the stack that may follow.
    static std::string first_line(const Ort::Exception& error) {
        const std::string_view said = error.what();
        return std::string(said.substr(0, said.find('\n')));
    }

    /// An arena says that it failed to allocate; without one it is bad_alloc.
    static void refuse_without_memory(const std::string& name, const std::string& reason) {
        if (reason.find("alloc") == std::string::npos) return;
        throw BundleError("there is no memory to run graph " + python_repr(name) + " (" + reason +
                          "): make a shorter clip, close other programs, or set low_memory");
    }

    Ort::Session& open(const std::string& name) {
        const auto found = sessions_.find(name);
        if (found != sessions_.end()) return found->second;
        const auto graph = manifest_->graphs.find(name);
        if (graph == manifest_->graphs.end()) {
            throw BundleError("the bundle at '" + path_text(folder_) + "' has no graph " + python_repr(name) +
                              ": export it again");
        }
        const std::filesystem::path path = folder_ / path_of(graph->second.file);
        try {
            Ort::Session session = opened(path, runs_once(name) ? once_options_ : options_);
            std::vector<std::string> inputs, outputs;
            Ort::AllocatorWithDefaultOptions allocator;
            for (std::size_t index = 0; index < session.GetInputCount(); ++index) {
                inputs.emplace_back(session.GetInputNameAllocated(index, allocator).get());
            }
            for (std::size_t index = 0; index < session.GetOutputCount(); ++index) {
                outputs.emplace_back(session.GetOutputNameAllocated(index, allocator).get());
            }
            check_names(name, graph->second.inputs, inputs);
            check_names(name, graph->second.outputs, outputs);
            return sessions_.emplace(name, std::move(session)).first->second;
        } catch (const Ort::Exception& error) {
            const std::string reason = first_line(error);
            const std::size_t named = reason.find(path_text(path));  // which may have any name
            if (named == std::string::npos) refuse_without_memory(name, reason);
            throw BundleError("ONNX Runtime cannot open '" + path_text(path) + "': " + reason);
        }
    }

    Ort::Session opened(const std::filesystem::path& path, const Ort::SessionOptions& options) const {
        const std::lock_guard<std::mutex> lock(environment_mutex());
        return Ort::Session(environment_, path.c_str(), options);
    }

    static void check_names(const std::string& name, const std::vector<TensorSpec>& specs,
                            const std::vector<std::string>& found) {
        const auto same = [](const TensorSpec& spec, const std::string& other) { return spec.name == other; };
        if (std::equal(specs.begin(), specs.end(), found.begin(), found.end(), same)) return;
        std::string names;
        for (const std::string& one : found) names += (names.empty() ? "" : ", ") + one;
        throw BundleError("graph " + python_repr(name) + " has " + names +
                          ", the manifest says otherwise: export the bundle again");
    }

    /// A named device never falls back. Raises InputError when this ONNX Runtime lacks it.
    void choose_device(const std::string& device) {
        if (device == "cpu") return;
        if (device != "cuda" && device != "tensorrt") {
            throw InputError("unknown device " + python_repr(device) + ": expected cpu, cuda, tensorrt");
        }
        try {
            if (device == "tensorrt") options_.AppendExecutionProvider_TensorRT(OrtTensorRTProviderOptions{});
            options_.AppendExecutionProvider_CUDA(OrtCUDAProviderOptions{});
        } catch (const Ort::Exception& error) {
            throw InputError("device " + python_repr(device) + " is not in this ONNX Runtime (" + error.what() +
                             "): link one built with it");
        }
    }

    /// Whether ONNX Runtime cuts off sums of products of uint8 and int8 at 16 bits, as it does on an x86-64 processor
    /// without VNNI. There its slower products are taken. See `keep_integers_exact` in runtime/session.py.
    bool integers_overflow() {
        // y (1, 1) = MatMulInteger of uint8 a (1, 4) and int8 b (4, 1), opset 20.
        static constexpr unsigned char product[] = {
            0x08, 0x08, 0x3a, 0x5c, 0x0a, 0x18, 0x0a, 0x01, 0x61, 0x0a, 0x01, 0x62, 0x12, 0x01, 0x79, 0x22, 0x0d,
            0x4d, 0x61, 0x74, 0x4d, 0x75, 0x6c, 0x49, 0x6e, 0x74, 0x65, 0x67, 0x65, 0x72, 0x12, 0x01, 0x67, 0x5a,
            0x13, 0x0a, 0x01, 0x61, 0x12, 0x0e, 0x0a, 0x0c, 0x08, 0x02, 0x12, 0x08, 0x0a, 0x02, 0x08, 0x01, 0x0a,
            0x02, 0x08, 0x04, 0x5a, 0x13, 0x0a, 0x01, 0x62, 0x12, 0x0e, 0x0a, 0x0c, 0x08, 0x03, 0x12, 0x08, 0x0a,
            0x02, 0x08, 0x04, 0x0a, 0x02, 0x08, 0x01, 0x62, 0x13, 0x0a, 0x01, 0x79, 0x12, 0x0e, 0x0a, 0x0c, 0x08,
            0x06, 0x12, 0x08, 0x0a, 0x02, 0x08, 0x01, 0x0a, 0x02, 0x08, 0x01, 0x42, 0x04, 0x0a, 0x00, 0x10, 0x14};
        Ort::SessionOptions options;
        options.SetIntraOpNumThreads(1);
        options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
        std::uint8_t a[] = {255, 255, 255, 255};
        std::int8_t b[] = {127, 127, 127, 127};
        const Shape row{1, 4}, column{4, 1};
        const Ort::Value inputs[] = {view(a, 4, row), view(b, 4, column)};
        const char *taken[] = {"a", "b"}, *given[] = {"y"};
        const std::lock_guard<std::mutex> lock(environment_mutex());
        Ort::Session session(environment_, product, sizeof product, options);
        const auto found = session.Run(Ort::RunOptions{}, taken, inputs, 2, given, 1);
        return found[0].GetTensorData<std::int32_t>()[0] != 4 * 255 * 127;
    }

    /// Whether a graph runs once a clip, not in every step.
    static bool runs_once(const std::string& name) {
        const std::string prefix = "controlnet_";
        const std::string graph = name.rfind(prefix, 0) == 0 ? name.substr(prefix.size()) : name;
        return graph == "text_encoder" || graph == "conditioner" || graph == "modulation" || graph == "frame_bias";
    }

    /// Lets activations of all sessions lie in one arena of the process, weights beside it; in none with `low_memory`.
    void share_memory(bool low_memory) {
        // Threads of a session that has run would go on waiting busily, and keep the next one's from the cores.
        options_.AddConfigEntry("session.force_spinning_stop", "1");
        options_.DisableMemPattern();  // a plan would lie beside what the run took that it was made in
        if (low_memory) {
            options_.DisableCpuMemArena();
            return;
        }
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const std::lock_guard<std::mutex> lock(environment_mutex());
        try {
            // One region for a step or a part of a decode, and no tensor takes more of a free piece than it needs.
            constexpr int region = 1 << 28, wasted = 1 << 20;
            environment_.CreateAndRegisterAllocator(memory, Ort::ArenaCfg(0, -1, region, wasted));
        } catch (const Ort::Exception&) {
            // One is registered already, by another bundle or by the application, and serves as well. Newer versions of
            // ONNX Runtime take this one in its place; what is open keeps what it has.
        }
        options_.AddConfigEntry("session.use_env_allocators", "1");
        options_.AddConfigEntry("session.use_device_allocator_for_initializers", "1");
    }

    static void ORT_API_CALL say_nothing(void*, OrtLoggingLevel, const char*, const char*, const char*, const char*) {}

    std::filesystem::path folder_;
    const Manifest* manifest_;
    Ort::Env environment_{ORT_LOGGING_LEVEL_FATAL, "ezaudio", say_nothing, nullptr};
    Ort::SessionOptions options_, once_options_;
    std::map<std::string, Ort::Session> sessions_;
};

}  // namespace ezaudio::detail
