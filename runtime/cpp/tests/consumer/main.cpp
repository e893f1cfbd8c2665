// consumer BUNDLE: opens it, which takes the whole library, ONNX Runtime and, where it is linked, sentencepiece.
#include <ezaudio/ezaudio.hpp>

#include <cstdio>
#include <filesystem>
#include <memory>
#ifdef EZAUDIO_SENTENCEPIECE
#include <ezaudio/sentencepiece.hpp>
#endif

int main(int, char** argv) {
    const std::filesystem::path bundle = argv[1];
    ezaudio::PipelineOptions options;
#ifdef EZAUDIO_SENTENCEPIECE
    options.tokenizer = std::make_shared<ezaudio::SentencePieceTokenizer>(bundle / "spiece.model");
#endif
    const ezaudio::Pipeline pipeline(bundle, options);
    std::printf("ezaudio %s, ONNX Runtime %s\n", EZAUDIO_VERSION, OrtGetApiBase()->GetVersionString());
    const char* separator = "[";
    for (const auto id : pipeline.tokenizer().encode("dog barking")) {
        std::printf("%s%d", separator, static_cast<int>(id));
        separator = ", ";
    }
    std::puts("]");
}
