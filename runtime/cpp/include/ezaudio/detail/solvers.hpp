#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <ezaudio/detail/config.hpp>
#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/exact_math.hpp>
#include <ezaudio/detail/text_format.hpp>

// Samplers as tables, with the bits of Python's runtime/solvers.py, where the formulas come from.
//
// With latents x, velocity v, noise z and the clean estimate p of the step before, a step is
//     clean = c4·x + c5·v        next = c0·x + c1·v + c2·p + c3·z
namespace ezaudio::detail {

/// One timestep and one row c0…c5 a step. `num_train_steps`: T, which timesteps count up to. `draws_noise`: the random
/// stream advances at every step.
struct SolverPlan {
    std::vector<std::int64_t> timesteps;
    std::vector<std::array<float, 6>> rows;
    int num_train_steps = 0;
    bool draws_noise = false;
};

/// ᾱ of every training step, the last exactly 0 (Lin et al. 2023, algorithm 1).
inline std::vector<double> alphas_cumprod(const DiffusionConfig& diffusion) {
    const auto count = static_cast<std::size_t>(diffusion.num_train_steps);
    const double first = std::sqrt(diffusion.beta_start), last = std::sqrt(diffusion.beta_end);
    const double stride = (last - first) / static_cast<double>(count - 1);
    std::vector<double> values(count);
    double product = 1.0;
    for (std::size_t i = 0; i < count; ++i) {
        const double root = first + static_cast<double>(i) * stride;
        product = product * (1.0 - root * root);
        values[i] = std::sqrt(product);
    }
    const double start = values.front(), end = values.back(), scale = start / (start - end);
    for (double& value : values) {
        value = (value - end) * scale;
        value = value * value;
    }
    return values;
}

/// round(T − i·T/N) − 1, halves to even, for i = 0…N−1.
inline std::vector<std::int64_t> trailing_timesteps(int num_steps, int num_train_steps) {
    const double start = num_train_steps;
    const double stride = (start + -start / num_steps) - start;  // rounded as NumPy's arange rounds it
    std::vector<std::int64_t> timesteps(static_cast<std::size_t>(num_steps));
    for (std::size_t i = 0; i < timesteps.size(); ++i) {
        timesteps[i] = static_cast<std::int64_t>(std::nearbyint(start + static_cast<double>(i) * stride)) - 1;
    }
    return timesteps;
}

/// T·(1 − (i/N)^spacing) − 1 for i = 0…N−1, each at least one below the one before; spacing 1 is the even grid.
inline std::vector<std::int64_t> spaced_timesteps(int num_steps, double spacing, int num_train_steps) {
    std::vector<std::int64_t> timesteps = trailing_timesteps(num_steps, num_train_steps);
    if (spacing == 1.0) return timesteps;
    const double total = num_train_steps, count = num_steps;
    for (std::size_t i = 1; i < timesteps.size(); ++i) {
        const double done = exact_power(static_cast<double>(i) / count, spacing);
        const auto listed = static_cast<std::int64_t>(std::nearbyint(total * (1.0 - done))) - 1;
        timesteps[i] = std::min(listed, timesteps[i - 1] - 1);
    }
    return timesteps;
}

using Row = std::array<double, 6>;

/// DDIM (Song et al. 2021, equations 12 and 16); ᾱ' belongs to t − T//N as in the official sampler, on a grid that is not
/// even to the next timestep.
inline std::vector<Row> ddim_rows(const std::vector<std::int64_t>& timesteps, const std::vector<double>& alphas,
                                  double eta) {
    const auto jump = static_cast<std::int64_t>(alphas.size() / timesteps.size());
    const bool is_even =
        timesteps == trailing_timesteps(static_cast<int>(timesteps.size()), static_cast<int>(alphas.size()));
    std::vector<Row> rows;
    for (std::size_t i = 0; i < timesteps.size(); ++i) {
        const std::int64_t timestep = timesteps[i];
        const std::int64_t following = i + 1 < timesteps.size() ? timesteps[i + 1] : -1;
        const std::int64_t previous = is_even ? timestep - jump : following;
        const double now = alphas[static_cast<std::size_t>(timestep)];
        const double after = previous >= 0 ? alphas[static_cast<std::size_t>(previous)] : 1.0;
        const double variance = eta * eta * (1.0 - after) / (1.0 - now) * (1.0 - now / after);
        const double direction = std::sqrt(std::max(1.0 - after - variance, 0.0));
        const double alpha = std::sqrt(now), sigma = std::sqrt(1.0 - now), alpha_after = std::sqrt(after);
        rows.push_back({alpha_after * alpha + direction * sigma, direction * alpha - alpha_after * sigma, 0.0,
                        std::sqrt(variance), alpha, -sigma});
    }
    return rows;
}

/// DPM-Solver++(2M): the ODE form of Lu et al. 2022 (algorithm 2) at eta 0, its SDE form at eta 1.
inline std::vector<Row> dpmpp_2m_sde_rows(const std::vector<std::int64_t>& timesteps,
                                          const std::vector<double>& alphas, double eta) {
    const std::size_t count = timesteps.size();
    std::vector<Row> rows;
    double h_before = 0;  // of the step before; the first step's is infinite
    for (std::size_t i = 0; i < count; ++i) {
        const double now = alphas[static_cast<std::size_t>(timesteps[i])];
        const double after = i + 1 < count ? alphas[static_cast<std::size_t>(timesteps[i + 1])] : 1.0;
        const double alpha = std::sqrt(now), sigma = std::sqrt(1.0 - now);
        const double alpha_after = std::sqrt(after), sigma_after = std::sqrt(1.0 - after);
        const double q = (alpha * sigma_after) / (alpha_after * sigma);
        double k = 0.0;
        if (i >= 1 && i + 1 < count) {
            const double h = -exact_log(q);
            if (i >= 2) k = h / (2.0 * h_before);
            h_before = h;
        }
        const double decay = sigma_after / sigma * exact_power(q, eta);
        const double gain = alpha_after * (1.0 - exact_power(q, 1.0 + eta));
        const double noise = std::sqrt(std::max(1.0 - exact_power(q, 2.0 * eta), 0.0));
        rows.push_back({decay + gain * (1.0 + k) * alpha, -gain * (1.0 + k) * sigma, -gain * k, sigma_after * noise,
                        alpha, -sigma});
    }
    return rows;
}

/// One entry of `solvers`: its rows, and whether eta above 0 is allowed.
struct Solver {
    const char* name;
    std::vector<Row> (*rows)(const std::vector<std::int64_t>&, const std::vector<double>&, double);
    bool is_stochastic;
};

inline constexpr std::array<Solver, 3> solvers{{
    {"ddim", ddim_rows, true},
    {"dpmpp_2m", dpmpp_2m_sde_rows, false},
    {"dpmpp_2m_sde", dpmpp_2m_sde_rows, true},
}};

/// Raises InputError for an unknown name.
inline const Solver& find_solver(const std::string& name) {
    std::string names;
    for (const Solver& solver : solvers) {
        if (name == solver.name) return solver;
        names += (names.empty() ? "" : ", ") + std::string(solver.name);
    }
    throw InputError("unknown solver " + python_repr(name) + ": expected one of " + names);
}

/// The table of a solver. `num_steps` 1 to the model's training steps, `eta` 0 to 1, as checked before. Raises InputError.
inline SolverPlan solver_plan(const std::string& name, int num_steps, double eta, const DiffusionConfig& diffusion,
                              double spacing = 1.0) {
    const Solver& solver = find_solver(name);
    if (eta > 0 && !solver.is_stochastic) {
        throw InputError("solver " + python_repr(name) + " adds no noise: eta must be 0, got " + python_float(eta) +
                         "; solvers with noise: ddim, dpmpp_2m_sde");
    }
    SolverPlan plan;
    plan.timesteps = spaced_timesteps(num_steps, spacing, diffusion.num_train_steps);
    for (const Row& row : solver.rows(plan.timesteps, alphas_cumprod(diffusion), eta)) {
        std::array<float, 6> rounded{};
        std::transform(row.begin(), row.end(), rounded.begin(), [](double value) { return static_cast<float>(value); });
        plan.rows.push_back(rounded);
    }
    plan.num_train_steps = diffusion.num_train_steps;
    plan.draws_noise = eta > 0;
    return plan;
}

/// Which steps are guided: those whose noise level (t + 1)/T lies in the interval, 1 being pure noise.
inline std::vector<bool> guided_steps(const SolverPlan& plan, const std::pair<double, double>& interval) {
    const double low = interval.first * plan.num_train_steps, high = interval.second * plan.num_train_steps;
    std::vector<bool> guided;
    for (const std::int64_t timestep : plan.timesteps) {
        const auto level = static_cast<double>(timestep + 1);
        guided.push_back(low <= level && level <= high);
    }
    return guided;
}

}  // namespace ezaudio::detail
