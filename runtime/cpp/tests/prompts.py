"""Prompts of many scripts and spellings."""

PROMPTS = [
    "dog barking",
    "rain on a tin roof",
    "a train passes while children play",
    'a "quoted" sound',
    "café crème ½ ﬁ",
    "日本語の音",
    "🐶 barks 👍🏽",
    "tab\tand\nnewline",
    "\u202eright to left",
    "horse neighs far away",
    "bell",
    "e\u0301 and ½\u0301",
    "a " * 90,
    "wind blowing hard",
    "an engine, idling; then revving!",
    "<0x41> </s> <pad>",
    "ocean waves " * 3,
    "100% noise & hum",
    "UPPER lower",
    "\\backslash/ and slash",
]
