#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ezaudio/detail/conditioning.hpp>
#include <ezaudio/detail/sessions.hpp>
#include <ezaudio/detail/settings.hpp>
#include <ezaudio/detail/solvers.hpp>

namespace ezaudio::detail {

/// A graph that runs once a step, the denoiser or the ControlNet, with everything that is the same in every step.
class StepGraph {
public:
    /// `kind` is the graph's name without its ending, which says how the settings guide.
    StepGraph(Sessions& sessions, Conditioning& conditioning, const Settings& settings, const SolverPlan& plan,
              const std::string& prefix, const std::string& kind)
        : sessions_(&sessions), prefix_(prefix), modulation_(conditioning.modulation(plan, prefix)) {
        const PromptState prompt = conditioning.prompt(settings.prompt, prefix);
        if (settings.guidance_scale == 1.0) {
            branches_ = 1;
            name_ = kind + "_unguided";
            add_cross({&prompt}, conditioning.num_blocks(prefix));
            return;
        }
        const PromptState negative = conditioning.prompt(settings.negative_prompt, prefix);
        if (negative.num_tokens() == 1) {  // attention over one token is a constant
            name_ = kind;
            add_cross({&prompt}, conditioning.num_blocks(prefix));
            add("cross_constant", negative.constant);
        } else {
            name_ = kind + "_negative";
            add_cross({&prompt, &negative}, conditioning.num_blocks(prefix));
        }
    }

    /// Evaluations of the network a step: two under guidance.
    std::int64_t num_branches() const { return branches_; }

    void add(const std::string& name, Tensor tensor) {
        tensors_.push_back(std::move(tensor));
        constants_.insert_or_assign(name, view(tensors_.back()));
    }

    void add(const std::string& name, float value, Shape shape) { add(name, Tensor{std::move(shape), {value}}); }

    /// What the given latents (1, C, L), their mask (1, L) and the energy add to the first convolution.
    void add_frame_bias(const Tensor& given, const bool* mask, const Tensor* energy, std::int64_t width) {
        const std::int64_t frames = given.shape[2];
        const Ort::Value given_input = view(given), mask_input = view(mask, static_cast<std::size_t>(frames), {1, frames});
        Inputs inputs{{"given", &given_input}, {"mask", &mask_input}};
        Ort::Value energy_input{nullptr};
        if (energy != nullptr) {
            energy_input = view(*energy);
            inputs["energy"] = &energy_input;
        }
        const std::string name = prefix_ + "frame_bias";
        auto outputs = sessions_->run(name, inputs);
        constants_.insert_or_assign("frame_bias", sessions_->take(name, outputs, "frame_bias", {1, frames, width}));
    }

    /// The graph's outputs in step `row`; `changing` are the inputs that this step alone has.
    std::vector<Ort::Value> run(std::size_t row, Inputs changing) {
        const Ort::Value block = row_of(modulation_.block, row);
        changing["block_modulation"] = &block;
        Ort::Value final_block{nullptr};
        if (prefix_.empty()) {
            final_block = row_of(modulation_.final_block, row);
            changing["final_modulation"] = &final_block;
        }
        for (const auto& [name, value] : constants_) changing[name] = &value;
        return sessions_->run(name_, changing);
    }

    Ort::Value take(std::vector<Ort::Value>& outputs, const char* output, const Shape& shape) const {
        return sessions_->take(name_, outputs, output, shape);
    }

private:
    /// Keys and values of one or two prompts, padded with zeros to the longer, and which tokens are valid.
    void add_cross(const std::vector<const PromptState*>& prompts, std::int64_t blocks) {
        std::int64_t tokens = 0;
        for (const PromptState* prompt : prompts) tokens = std::max(tokens, prompt->num_tokens());
        add("cross_keys", stacked(prompts, &PromptState::keys, blocks, tokens));
        add("cross_values", stacked(prompts, &PromptState::values, blocks, tokens));
        const std::size_t count = prompts.size() * static_cast<std::size_t>(tokens);
        mask_ = std::make_unique<bool[]>(count);
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t row = i / static_cast<std::size_t>(tokens), token = i % static_cast<std::size_t>(tokens);
            mask_[i] = static_cast<std::int64_t>(token) < prompts[row]->num_tokens();
        }
        constants_.insert_or_assign(
            "context_mask", view(mask_.get(), count, {static_cast<std::int64_t>(prompts.size()), tokens}));
    }

    static Tensor stacked(const std::vector<const PromptState*>& prompts, Tensor PromptState::*part,
                          std::int64_t blocks, std::int64_t tokens) {
        const Shape& one = (prompts.front()->*part).shape;  // (N, 1, H, S, E)
        Tensor all = zeros({blocks, static_cast<std::int64_t>(prompts.size()), one[2], tokens, one[4]});
        auto target = all.data.begin();
        for (std::int64_t block = 0; block < blocks; ++block) {
            for (const PromptState* prompt : prompts) {
                const Tensor& source = prompt->*part;
                const std::int64_t own = source.shape[3] * one[4];  // values of a head
                for (std::int64_t head = 0; head < one[2]; ++head) {
                    std::copy_n(source.data.begin() + (block * one[2] + head) * own, own, target);
                    target += tokens * one[4];
                }
            }
        }
        return all;
    }

    static Ort::Value row_of(const Tensor& all, std::size_t row) {
        const Shape shape(all.shape.begin() + 1, all.shape.end());
        const std::size_t count = element_count(shape);
        return view(&all.data[row * count], count, shape);
    }

    Sessions* sessions_;
    std::string prefix_, name_;
    std::int64_t branches_ = 2;
    const Modulation& modulation_;  // the conditioning keeps those of the last plan
    std::deque<Tensor> tensors_;    // what the views in constants_ look at: a deque does not move its elements
    std::unique_ptr<bool[]> mask_;
    std::map<std::string, Ort::Value> constants_;
};

}  // namespace ezaudio::detail
