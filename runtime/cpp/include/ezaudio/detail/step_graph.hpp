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

/// What cross-attention reads in a step: keys and values of the rows that attend to a prompt, the constant of those
/// whose prompt is one token.
class CrossInputs {
public:
    CrossInputs(Conditioning& conditioning, const Settings& settings, bool is_guided, const std::string& prefix)
        : branches_(is_guided ? 2 : 1) {
        std::vector<const PromptState*> prompts{&conditioning.prompt(settings.prompt, prefix)};  // it keeps the last ones
        const Shape& constants = prompts.front()->constant.shape;  // (N, 1, D)
        constant_.shape = {constants[0], 0, constants[2]};
        if (is_guided) {
            const PromptState& negative = conditioning.prompt(settings.negative_prompt, prefix);
            if (negative.num_tokens() == 1) {  // attention over one token is a constant
                constant_ = negative.constant;
            } else {
                prompts.push_back(&negative);
            }
        }
        std::int64_t tokens = 0;
        for (const PromptState* prompt : prompts) tokens = std::max(tokens, prompt->num_tokens());
        keys_ = stacked(prompts, &PromptState::keys, tokens);
        values_ = stacked(prompts, &PromptState::values, tokens);
        const std::size_t count = prompts.size() * static_cast<std::size_t>(tokens);
        mask_ = std::make_unique<bool[]>(count);
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t row = i / static_cast<std::size_t>(tokens), token = i % static_cast<std::size_t>(tokens);
            mask_[i] = static_cast<std::int64_t>(token) < prompts[row]->num_tokens();
        }
        views_.emplace("cross_keys", view(keys_));
        views_.emplace("cross_values", view(values_));
        views_.emplace("cross_constant", view(constant_));
        views_.emplace("context_mask", view(mask_.get(), count, {static_cast<std::int64_t>(prompts.size()), tokens}));
    }
    CrossInputs(const CrossInputs&) = delete;
    CrossInputs& operator=(const CrossInputs&) = delete;

    /// Rows of the network: two under guidance.
    std::int64_t num_branches() const { return branches_; }

    const std::map<std::string, Ort::Value>& by_name() const { return views_; }

private:
    /// Keys or values of one or two prompts, (N, prompts, H, S, E), padded with zeros to the longer.
    static Tensor stacked(const std::vector<const PromptState*>& prompts, Tensor PromptState::*part,
                          std::int64_t tokens) {
        const Shape& one = (prompts.front()->*part).shape;  // (N, 1, H, S, E)
        Tensor all = zeros({one[0], static_cast<std::int64_t>(prompts.size()), one[2], tokens, one[4]});
        auto target = all.data.begin();
        for (std::int64_t block = 0; block < one[0]; ++block) {
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

    std::int64_t branches_;
    Tensor keys_, values_, constant_;
    std::unique_ptr<bool[]> mask_;  // (prompts, S): which tokens are valid
    std::map<std::string, Ort::Value> views_;
};

/// A graph that runs once a step, the denoiser or the ControlNet: in every step with guidance or without, and with all
/// blocks or, where they are reused, the outermost.
class StepGraph {
public:
    StepGraph(Sessions& sessions, Conditioning& conditioning, const Settings& settings, const SolverPlan& plan,
              const std::string& prefix, const std::string& name)
        : sessions_(&sessions), prefix_(prefix), modulation_(conditioning.modulation(plan, prefix)) {
        const std::vector<bool> guided = guided_steps(plan, settings.guidance_interval);
        for (std::size_t step = 0; step < guided.size(); ++step) {
            const bool is_guided = guided[step] && settings.guidance_scale != 1.0;
            const auto& cross = cross_.try_emplace(is_guided, conditioning, settings, is_guided, prefix).first->second;
            const bool is_shallow = settings.reuses(static_cast<int>(step));
            evaluations_.push_back({is_shallow ? name + "_shallow" : name, &cross});
        }
    }

    /// Rows of the network in a step: two under guidance.
    std::int64_t num_branches(std::size_t step) const { return evaluations_[step].cross->num_branches(); }

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
        Tensor bias{{1, frames, width}, {}};
        const Ort::Value made = sessions_->take(name, outputs, "frame_bias", bias.shape);
        // A copy: what a session made keeps its memory, and the session may be closed before the steps.
        const float* first = made.GetTensorData<float>();
        bias.data.assign(first, first + element_count(bias.shape));
        add("frame_bias", std::move(bias));
    }

    /// The graph's outputs in a step; `changing` are the inputs that this step alone has, `unread` see `Sessions::run`.
    std::vector<Ort::Value> run(std::size_t step, Inputs changing, const char* unread = "") {
        const Ort::Value block = row_of(modulation_.block, step);
        changing["block_modulation"] = &block;
        Ort::Value final_block{nullptr};
        if (prefix_.empty()) {
            final_block = row_of(modulation_.final_block, step);
            changing["final_modulation"] = &final_block;
        }
        for (const auto& [name, value] : constants_) changing[name] = &value;
        for (const auto& [name, value] : evaluations_[step].cross->by_name()) changing[name] = &value;
        return sessions_->run(evaluations_[step].graph, changing, unread);
    }

    Ort::Value take(std::size_t step, std::vector<Ort::Value>& outputs, const char* output, const Shape& shape) const {
        return sessions_->take(evaluations_[step].graph, outputs, output, shape);
    }

private:
    /// How a step is run.
    struct Evaluation {
        std::string graph;
        const CrossInputs* cross;
    };

    static Ort::Value row_of(const Tensor& all, std::size_t row) {
        const Shape shape(all.shape.begin() + 1, all.shape.end());
        const std::size_t count = element_count(shape);
        return view(&all.data[row * count], count, shape);
    }

    Sessions* sessions_;
    std::string prefix_;
    const Modulation& modulation_;  // the conditioning keeps those of the last plan
    std::map<bool, CrossInputs> cross_;    // by whether a step is guided
    std::vector<Evaluation> evaluations_;  // one a step
    std::deque<Tensor> tensors_;           // what the views in constants_ look at: a deque does not move its elements
    std::map<std::string, Ort::Value> constants_;
};

}  // namespace ezaudio::detail
