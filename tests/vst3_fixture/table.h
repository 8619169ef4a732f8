// What a parameter of the test instrument is, and the instrument's own list.
//
// Another list is compiled in with -DPARAMETER_TABLE='"file.h"'; it defines
// the array PARAMETERS and nothing else.
#pragma once

enum Kind {
    kBypass,      // the host's bypass switch
    kContinuous,  // 0 to 1
    kStepped,     // an integer, 0 to count - 1, shown as a number
    kSwitch,      // "Off" or "On"
    kChoice,      // one of `count` names
};

struct Entry {
    const char* name;
    Kind kind;
    int count;     // of a stepped parameter or a choice
    double start;  // raw value in 0 to 1 that a new instance has
    const char* const* labels = nullptr;  // null: "Type A", "Type B", ...
};

#ifndef PARAMETER_TABLE

static const char* const kWaves[] = {"Sine", "Triangle", "Saw", "Square"};
static const char* const kFilters[] = {"Low-pass", "Band-pass", "High-pass"};
static const char* const kFaults[] = {
    "None", "Silence", "Memory leak", "Unsteady"};

static const Entry PARAMETERS[] = {
    {"Bypass", kBypass, 2, 0},
    {"Waveform", kChoice, 4, 2. / 3, kWaves},
    {"Octave", kStepped, 4, 1. / 3},
    {"Level", kContinuous, 0, 0.8},  // of the first oscillator
    {"Harmonic", kStepped, 6, 0.2},  // of the second one
    {"Level", kContinuous, 0, 0.3},
    {"Ring Mod.", kSwitch, 2, 0},
    {"Filter Type", kChoice, 3, 0, kFilters},
    {"Filter CUTOFF", kContinuous, 0, 0.7},
    {"Filter Resonance", kContinuous, 0, 0.2},
    {"Amp: Attack", kContinuous, 0, 0.1},
    {"Amp: Decay", kContinuous, 0, 0.5},
    {"Amp: Sustain", kContinuous, 0, 0.7},
    {"Amp: Release", kContinuous, 0, 0.3},
    {"LFO Rate", kContinuous, 0, 0.5},
    {"LFO Depth", kContinuous, 0, 0.2},
    {"Noise", kContinuous, 0, 0.05},
    {"Echo", kContinuous, 0, 0.2},
    {"Master Volume", kContinuous, 0, 0.5},
    // From .97 on every note crashes, from .98 on it hangs, from .99 on it
    // is not a number.
    {"Hazard", kContinuous, 0, 0},
    {"Fault", kChoice, 4, 0, kFaults},
    {"Panic", kSwitch, 2, 0},
};

#else
#include PARAMETER_TABLE
#endif

static const int NUM_PARAMETERS = sizeof(PARAMETERS) / sizeof(PARAMETERS[0]);
