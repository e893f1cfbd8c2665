// Arithmetic outside of the graphs: the bits that Python's tests have written down (tests/test_exact_math.py).
#include "helpers.hpp"

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include <ezaudio/detail/decoding.hpp>
#include <ezaudio/detail/editing.hpp>
#include <ezaudio/detail/energy.hpp>
#include <ezaudio/detail/exact_math.hpp>
#include <ezaudio/detail/noise.hpp>
#include <ezaudio/detail/solvers.hpp>

using namespace ezaudio::detail;

namespace {

constexpr std::array<double, 4> arguments{1e-7, 0.1, 0.7, 0.9999999};

/// Bytes of floats in hexadecimal, the first byte first, on a little-endian machine.
std::string hex(const std::vector<float>& values) {
    std::string bytes(values.size() * sizeof(float), '\0'), text;
    std::memcpy(bytes.data(), values.data(), bytes.size());
    for (const char byte : bytes) text += hex_digits(static_cast<unsigned char>(byte), 2);
    return text;
}

VaeConfig official_vae() {
    VaeConfig vae;
    vae.strides = {2, 4, 6, 10};
    return vae;
}

}  // namespace

TEST_CASE("logarithm, exponential, cosine and sine have Python's bits (valgrind)") {
    constexpr std::array<double, 4> logs{-0x1.01e3b843eaa73p+4, -0x1.26bb1bbb55515p+1, -0x1.6d3c324e13f4fp-2,
            -0x1.ad7f2b1049ba0p-24};
    constexpr std::array<double, 4> exps{0x1.ffff9b563c210p-1, 0x1.97db0ccceb0afp-5, 0x1.a0db0d0ddb3ecp-31,
            0x1.a56e5f0612adcp-44};
    constexpr std::array<double, 8> cos_sin{0x1.ffffffffff90ep-1, 0x1.9e3779b97f4a8p-1, -0x1.3c6ef372fe954p-2,
            0x1.ffffffffff90ep-1, 0x1.515370f99f544p-21, 0x1.2cf2304755a5ep-1,
            -0x1.e6f0e134454ffp-1, -0x1.515370f6a4be2p-21};
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        CHECK(exact_log(arguments[i]) == logs[i]);
        CHECK(exact_exp(-arguments[i] * 30) == exps[i]);
        CHECK(cos_sin_turns(arguments[i]).cosine == cos_sin[i]);
        CHECK(cos_sin_turns(arguments[i]).sine == cos_sin[i + 4]);
    }
    CHECK(exact_log(1.0) == 0.0);
    CHECK(exact_power(0.0, 0.0) == 1.0);
    CHECK(exact_power(0.0, 1.5) == 0.0);
}

TEST_CASE("noise and solver rows have Python's bits (valgrind)") {
    const std::string torch = hex(TorchNoise(7).draw(0, 21));
    CHECK(torch.substr(torch.size() - 40) == "27e05dbfba6210bf159d03c053a4b6befa3b8c3f");
    CHECK(hex(TorchNoise(7).draw(0, 3)) == "745116be8e40493fe762723f");
    CHECK(hex(PhiloxNoise(7, 2).draw(3, 7)) == "0f4b26400cfa633f78b801bf2622ce3f548a1a405c24593f32f2a2bf");
    const auto plan = solver_plan("dpmpp_2m_sde", 7, 0.3, DiffusionConfig{});
    CHECK(hex({plan.rows[3].begin(), plan.rows[3].end()}) == "460e6a3fa288bfbee306f0bdeab8d63e28fdca3e61056bbf");
}

TEST_CASE("Philox gives the published words") {  // kat_vectors of Random123
    CHECK(philox4x32({0, 0, 0, 0}, 0) == std::array<std::uint32_t, 4>{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8});
    constexpr std::uint32_t ones = 0xFFFFFFFF;
    CHECK(philox4x32({ones, ones, ones, ones}, ~std::uint64_t{0}) ==
          std::array<std::uint32_t, 4>{0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD});
}

TEST_CASE("every table is finite and starts with a clean step") {
    for (const Solver& solver : solvers) {
        for (const int num_steps : {1, 2, 3, 7, 25, 100, 333, 1000}) {
            const auto plan = solver_plan(solver.name, num_steps, solver.is_stochastic ? 1.0 : 0.0, DiffusionConfig{});
            CHECK(plan.timesteps.front() == 999);
            CHECK(plan.rows.front()[2] == 0.0F);
            bool all_finite = true;
            for (const auto& row : plan.rows) {
                for (const float value : row) all_finite = all_finite && is_finite(value);
            }
            CHECK(all_finite);
        }
    }
}

TEST_CASE("solvers refuse what they cannot do") {
    using ezaudio::InputError;
    using ezaudio_tests::message_of;
    CHECK(message_of<InputError>([] { find_solver("euler"); }) ==
          "unknown solver 'euler': expected one of ddim, dpmpp_2m, dpmpp_2m_sde");
    CHECK(message_of<InputError>([] { solver_plan("dpmpp_2m", 5, 0.5, DiffusionConfig{}); }) ==
          "solver 'dpmpp_2m' adds no noise: eta must be 0, got 0.5; solvers with noise: ddim, dpmpp_2m_sde");
}

TEST_CASE("chunks cover the clip and their frames reach beyond them") {
    const VaeConfig vae = official_vae();
    std::int64_t end = 0;
    for (const Span chunk : chunk_bounds(30 * 24000 + 1, 24000)) {
        CHECK(chunk.begin == end);
        end = chunk.end;
        const Span span = latent_span(chunk, vae);
        CHECK(span.begin < chunk.begin / 480);
        CHECK(span.end > (chunk.end - 1) / 480);
        CHECK(chunk.begin / 480 - span.begin <= 10);
    }
    CHECK(end == 30 * 24000 + 1);
    CHECK(chunk_bounds(0, 24000).empty());
}

TEST_CASE("energy of silence is nothing, of a steady sound everything") {
    for (const float value : energy_contour(std::vector<float>(4800), 240)) CHECK(value == 0.0F);
    for (const float value : energy_contour(std::vector<float>(4800, 0.5F), 240)) CHECK(value > 0.999F);
}

TEST_CASE("an edit keeps what is outside of its window, bit for bit") {
    ezaudio::detail::Config config;
    config.vae = official_vae();
    const std::vector<float> clip(72000, 0.25F);
    const Window window = plan_window(clip.size(), {1.0, 2.0, 2.0}, config);
    CHECK(window.begin == 12000);
    CHECK(window.num_frames == 100);
    CHECK(window.first == 25);
    CHECK(window.last == 75);
    const auto edited = splice(clip, std::vector<float>(48000, 1.0F), window, 24000);
    CHECK(edited[24000 - 721] == 0.25F);
    CHECK(edited[24000 - 1] > 0.99F);
    CHECK(edited[24000] == 1.0F);
    CHECK(edited[48000 + 720] == 0.25F);
}
