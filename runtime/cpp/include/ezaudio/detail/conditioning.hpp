#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ezaudio/detail/config.hpp>
#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/files.hpp>
#include <ezaudio/detail/sentence_pieces.hpp>
#include <ezaudio/detail/sessions.hpp>
#include <ezaudio/detail/settings.hpp>
#include <ezaudio/detail/solvers.hpp>
#include <ezaudio/detail/text_format.hpp>
#include <ezaudio/detail/tokenizer.hpp>

// What steers the denoiser: prompts → text states → cross-attention, timesteps → modulation, each computed once.
namespace ezaudio::detail {

/// The bundle's tokenizer. Raises BundleError.
inline std::shared_ptr<const Tokenizer> open_tokenizer(const std::filesystem::path& folder) {
    const std::filesystem::path path = folder / "spiece.model";
    return std::make_shared<SentencePieces>(read_tokenizer_file(path), path_text(path));
}

/// The last few results of a function of text.
template <typename Value>
class Recent {
public:
    explicit Recent(std::size_t size) : size_(size) {}

    template <typename Make>
    const Value& get_or_make(const std::string& key, const Make& make) {
        const auto found = std::find_if(items_.begin(), items_.end(), [&](const auto& item) { return item.first == key; });
        if (found != items_.end()) {
            items_.splice(items_.begin(), items_, found);
        } else {
            items_.emplace_front(key, make());
            if (items_.size() > size_) items_.pop_back();
        }
        return items_.front().second;
    }

private:
    std::size_t size_;
    std::list<std::pair<std::string, Value>> items_;
};

/// Ids, the end token last; `dropped` is the end of a prompt that was too long.
struct Tokens {
    std::vector<std::int64_t> ids;
    std::string dropped;
};

/// What cross-attention needs of a prompt: keys, values (N, 1, H, S, E); output of a one-token prompt (N, 1, D).
struct PromptState {
    Tensor keys, values, constant;

    std::int64_t num_tokens() const { return keys.shape[3]; }
};

/// Modulation of every step: (K, N, 6, D) and, of the denoiser, (K, 2, D).
struct Modulation {
    Tensor block, final_block;
};

/// Computes and keeps them. `prefix`: "" for the denoiser's graphs, "controlnet_" for the ControlNet's.
class Conditioning {
public:
    Conditioning(Sessions& sessions, const Config& config, const Tokenizer& tokenizer)
        : sessions_(&sessions), config_(&config), tokenizer_(&tokenizer) {}

    /// That the end of a prompt was dropped, or nothing.
    std::string warning(const std::string& prompt) const {
        const std::string dropped = tokens(prompt).dropped;
        if (dropped.empty()) return "";
        return "the prompt is longer than " + std::to_string(config_->text.max_tokens) +
               " tokens; its end was dropped: " + python_repr(dropped);
    }

    /// Text states (1, S, D_text) of a prompt.
    const Tensor& text(const std::string& prompt) {
        return texts_.get_or_make(prompt, [&] { return encode(prompt); });
    }

    const PromptState& prompt(const std::string& prompt, const std::string& prefix) {
        return prompts_.get_or_make(prefix + '\0' + prompt, [&] { return attend(prompt, prefix); });
    }

    const Modulation& modulation(const SolverPlan& plan, const std::string& prefix) {
        std::string key = prefix;
        for (const std::int64_t timestep : plan.timesteps) key += ' ' + std::to_string(timestep);
        return modulations_.get_or_make(key, [&] { return modulate(plan, prefix); });
    }

    std::int64_t num_blocks(const std::string& prefix) const {
        const std::int64_t in_blocks = config_->dit.depth / 2;
        return prefix.empty() ? 2 * in_blocks + 1 : in_blocks;
    }

private:
    Tokens tokens(const std::string& prompt) const {
        constexpr std::int64_t end_token = 1;
        Tokens tokens{tokenizer_->encode(prompt), {}};
        std::vector<std::int64_t>& ids = tokens.ids;
        for (const std::int64_t id : ids) {
            if (id < 0 || id >= config_->text.vocab_size) {
                throw BundleError("the tokenizer gives the id " + std::to_string(id) + ", the model knows " +
                                  std::to_string(config_->text.vocab_size) + ": use the bundle's own");
            }
        }
        const auto kept = static_cast<std::size_t>(config_->text.max_tokens) - 1;
        if (ids.size() > kept) {
            const auto rest = ids.begin() + static_cast<std::ptrdiff_t>(kept);
            tokens.dropped = tokenizer_->decode({rest, ids.end()});
            ids.erase(rest, ids.end());
        }
        ids.push_back(end_token);
        return tokens;
    }

    Tensor encode(const std::string& prompt) {
        const std::vector<std::int64_t> ids = tokens(prompt).ids;
        const auto count = static_cast<std::int64_t>(ids.size());
        const std::vector<std::int64_t> ones(ids.size(), 1);
        const Ort::Value input_ids = view(ids.data(), ids.size(), {1, count});
        const Ort::Value attention_mask = view(ones.data(), ones.size(), {1, count});
        auto outputs =
            sessions_->run("text_encoder", {{"input_ids", &input_ids}, {"attention_mask", &attention_mask}});
        return copied("text_encoder", outputs, "text_states", {1, count, config_->text.width});
    }

    PromptState attend(const std::string& prompt, const std::string& prefix) {
        const Tensor& states = text(prompt);
        const Ort::Value input = view(states);
        const std::string name = prefix + "conditioner";
        auto outputs = sessions_->run(name, {{"text_states", &input}});
        const DitConfig& dit = config_->dit;
        const std::int64_t blocks = num_blocks(prefix);
        const Shape heads{blocks, 1, dit.num_heads, states.shape[1], dit.width / dit.num_heads};
        return {copied(name, outputs, "cross_keys", heads), copied(name, outputs, "cross_values", heads),
                copied(name, outputs, "cross_constant", {blocks, 1, dit.width})};
    }

    Modulation modulate(const SolverPlan& plan, const std::string& prefix) {
        constexpr std::size_t chunk = 64;  // steps a run, so that 1000 steps need no 1000 rows of activations at once
        const std::string name = prefix + "modulation";
        const std::int64_t width = config_->dit.width, blocks = num_blocks(prefix);
        const auto count = static_cast<std::int64_t>(plan.timesteps.size());
        Modulation all{{{count, blocks, 6, width}, {}}, {{count, 2, width}, {}}};
        for (std::size_t start = 0; start < plan.timesteps.size(); start += chunk) {
            const std::size_t size = std::min(chunk, plan.timesteps.size() - start);
            const auto steps = static_cast<std::int64_t>(size);
            const Ort::Value timesteps = view(&plan.timesteps[start], size, {steps});
            auto outputs = sessions_->run(name, {{"timesteps", &timesteps}});
            append(all.block, name, outputs, "block_modulation", {steps, blocks, 6, width});
            if (prefix.empty()) append(all.final_block, name, outputs, "final_modulation", {steps, 2, width});
        }
        return all;
    }

    void append(Tensor& all, const std::string& name, std::vector<Ort::Value>& outputs, const char* output,
                const Shape& shape) {
        const Ort::Value part = sessions_->take(name, outputs, output, shape);
        const float* first = part.GetTensorData<float>();
        all.data.insert(all.data.end(), first, first + element_count(shape));
    }

    Tensor copied(const std::string& name, std::vector<Ort::Value>& outputs, const char* output, const Shape& shape) {
        Tensor tensor{shape, {}};
        append(tensor, name, outputs, output, shape);
        return tensor;
    }

    static constexpr std::size_t cached_prompts = 16;

    Sessions* sessions_;
    const Config* config_;
    const Tokenizer* tokenizer_;
    Recent<Tensor> texts_{cached_prompts};
    Recent<PromptState> prompts_{2 * cached_prompts};
    Recent<Modulation> modulations_{2};
};

}  // namespace ezaudio::detail
