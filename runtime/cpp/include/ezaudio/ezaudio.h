/* EzAudio for C, and through it for any language: text to sound from an exported bundle.
 *
 *     ezaudio_pipeline *pipeline = ezaudio_create();
 *     ezaudio_audio *audio = NULL;
 *     ezaudio_options options;
 *     ezaudio_options_init(&options);
 *     options.duration_s = 5.0;
 *     if (ezaudio_open(pipeline, "path/to/bundle", 0, "cpu", 0) != EZAUDIO_OK ||
 *         ezaudio_generate(pipeline, "a dog barks", &options, &audio) != EZAUDIO_OK ||
 *         ezaudio_write_wav(pipeline, audio, "dog.wav", 16) != EZAUDIO_OK)
 *         fprintf(stderr, "%s\n", ezaudio_error(pipeline));
 *     ezaudio_free(audio);
 *     ezaudio_destroy(pipeline);
 *
 * Threads: a pipeline, and the sounds made with it, are used by one thread at a time; different pipelines are
 * independent. Text is UTF-8 and ends with a zero byte. Nothing here prints or exits.
 */
#ifndef EZAUDIO_H
#define EZAUDIO_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(EZAUDIO_BUILDING_C)
#define EZAUDIO_API __declspec(dllexport)
#else
#define EZAUDIO_API __declspec(dllimport)
#endif
#else
#define EZAUDIO_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ezaudio_pipeline ezaudio_pipeline;
typedef struct ezaudio_audio ezaudio_audio;

typedef enum ezaudio_status {
    EZAUDIO_OK = 0,
    EZAUDIO_INPUT_ERROR = 1,  /* an argument is outside what the model accepts */
    EZAUDIO_BUNDLE_ERROR = 2, /* the bundle is missing, damaged, incomplete or of another format */
    EZAUDIO_CANCELLED = 3,    /* a callback returned 0 */
    EZAUDIO_FAILURE = 4       /* anything else, such as no memory */
} ezaudio_status;

/* What a sound is made with. Fill it with ezaudio_options_init first: every field then says "the bundle's default", or the
 * preset's where one is named. */
typedef struct ezaudio_options {
    size_t size; /* of this struct, set by ezaudio_options_init: later versions add fields at the end */

    double duration_s;       /* NaN: the bundle's */
    double guidance_scale;   /* NaN: the bundle's; 1 is no guidance */
    double guidance_rescale; /* NaN: the bundle's; 0 to 1 */
    double eta;              /* NaN: the solver's usual; 0 to 1 */
    int32_t num_steps;       /* 0: the bundle's */
    int32_t has_seed;        /* 0: a random seed */
    uint64_t seed;

    const char *negative_prompt; /* NULL: none */
    const char *solver;          /* NULL: the bundle's; "ddim", "dpmpp_2m", "dpmpp_2m_sde" */
    const char *noise;           /* NULL: "torch"; or "philox" */

    /* Mono samples at the bundle's rate whose loudness contour the sound follows; NULL: none. */
    const float *control_audio;
    size_t control_count;
    double control_scale;

    /* Mono samples at the bundle's rate, of which start_s to end_s is made anew; NULL: a whole sound is made. */
    const float *edit_audio;
    size_t edit_count;
    double start_s, end_s, context_s;

    /* Called after every step (index from 0) and with the next samples as they are decoded; 0 cancels. NULL: nobody. */
    int32_t (*on_step)(void *user, size_t index, size_t num_steps);
    int32_t (*on_audio)(void *user, const float *samples, size_t count);
    void *user;

    const char *preset;    /* NULL: none; a sampling plan of the bundle: "fast", "balanced", "best", "official" */
    double guidance_low;   /* lowest and highest noise level that is guided, 0 to 1; */
    double guidance_high;  /* NaN in both: the preset's, or else all */
    const int32_t *reuse;  /* steps, from 0, that take what the inner blocks made last; NULL: the preset's, or else none */
    size_t reuse_count;
    double spacing; /* of the timesteps: 1 is even, to 4 denser at high noise; NaN: the preset's, or else even */
} ezaudio_options;

/* How a bundle is opened: the sum of any. */
enum {
    EZAUDIO_VERIFY = 1,    /* compare every file with its sha256 */
    EZAUDIO_LOW_MEMORY = 2 /* close the graphs of a stage before the next one opens; each clip opens them again */
};

EZAUDIO_API const char *ezaudio_version(void);

/* NULL when there is no memory. Every handle is destroyed once; NULL is allowed. */
EZAUDIO_API ezaudio_pipeline *ezaudio_create(void);
EZAUDIO_API void ezaudio_destroy(ezaudio_pipeline *pipeline);

/* The last error of this pipeline in one line, "" before any; good until its next call. */
EZAUDIO_API const char *ezaudio_error(const ezaudio_pipeline *pipeline);

/* threads: 0 takes all cores. device: "cpu", "cuda", "tensorrt". flags: 0, EZAUDIO_VERIFY, … */
EZAUDIO_API ezaudio_status ezaudio_open(ezaudio_pipeline *pipeline, const char *folder, int32_t threads,
                                        const char *device, int32_t flags);

/* Hz; 0 before a bundle is open. */
EZAUDIO_API int32_t ezaudio_sample_rate(const ezaudio_pipeline *pipeline);

EZAUDIO_API void ezaudio_options_init(ezaudio_options *options);

/* Makes one sound, or edits one. options: NULL for the defaults. *audio: the result, NULL on any error. */
EZAUDIO_API ezaudio_status ezaudio_generate(ezaudio_pipeline *pipeline, const char *prompt,
                                            const ezaudio_options *options, ezaudio_audio **audio);

/* Samples, full scale 1 and not clipped; they belong to the audio. */
EZAUDIO_API const float *ezaudio_samples(const ezaudio_audio *audio, size_t *count);
EZAUDIO_API uint64_t ezaudio_seed(const ezaudio_audio *audio);
/* One warning a line, "" for none; they belong to the audio. */
EZAUDIO_API const char *ezaudio_warnings(const ezaudio_audio *audio);

/* The file that ezaudio-run writes, byte for byte. bit_depth: 16, 24 or 32 (float). */
EZAUDIO_API ezaudio_status ezaudio_write_wav(ezaudio_pipeline *pipeline, const ezaudio_audio *audio, const char *path,
                                             int32_t bit_depth);

EZAUDIO_API void ezaudio_free(ezaudio_audio *audio);

#ifdef __cplusplus
}
#endif

#endif
