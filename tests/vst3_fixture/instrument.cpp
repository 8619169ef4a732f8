// A small synthesizer with the vices of real ones, to test a plug-in host.
//
// One voice. Its slow oscillator runs freely, its echo and its filter keep
// their state for ever, its noise is drawn with rand(), and its cutoff glides
// from where the preset before had it: a render is repeatable only in an
// instance of its own, with rand() seeded. With -DGLOBAL_STATE its slow
// oscillator belongs to the process, and only a fresh process helps.
//
// With -DSTEADY a note starts everything afresh but the echo, and what is too
// soft to be heard ends: real instruments can be like that, and slow to make,
// as with -DSETUP_MS=N.
//
// With -DDEAD_FROM=N it ignores its parameters from the N-th on. With
// -DEVENT_GRID=N what happens, happens at a multiple of N samples.
//
// With a parameter table of its own every parameter moves the levels of
// sixteen partials.

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "DistrhoPlugin.hpp"
#include "table.h"

START_NAMESPACE_DISTRHO

namespace {

const double kTau = 6.283185307179586;

double fraction(double x) { return x - std::floor(x); }

#ifdef GLOBAL_STATE
double shared_phase = 0;
#endif

}  // namespace

class Instrument : public Plugin {
   public:
    Instrument() : Plugin(NUM_PARAMETERS, 0, 0) {
        for (int i = 0; i < NUM_PARAMETERS; ++i)
            raw_[i] = PARAMETERS[i].start;
        echo_.assign(kEcho, 0.f);
#ifdef SETUP_MS
        usleep(1000 * SETUP_MS);
#endif
    }

   protected:
    const char* getLabel() const override { return "proxy_fixture"; }
    const char* getMaker() const override { return "Synth Proxy"; }
    const char* getLicense() const override { return "Apache-2.0"; }
    uint32_t getVersion() const override { return d_version(1, 2, 3); }
    int64_t getUniqueId() const override { return d_cconst(FIXTURE_ID); }

    void initParameter(uint32_t index, Parameter& parameter) override {
        const Entry& entry = PARAMETERS[index];
        char symbol[16];
        std::snprintf(symbol, sizeof(symbol), "p%u", index);
        if (entry.kind == kBypass) {
            parameter.initDesignation(kParameterDesignationBypass);
            return;
        }
        parameter.name = entry.name;
        parameter.symbol = symbol;
        parameter.hints = kParameterIsAutomatable;
        parameter.ranges.min = 0.f;
        parameter.ranges.max = 1.f;
        if (entry.kind == kSwitch) parameter.hints |= kParameterIsBoolean;
        if (entry.kind == kStepped || entry.kind == kChoice) {
            parameter.hints |= kParameterIsInteger;
            parameter.ranges.max = entry.count - 1;
        }
        parameter.ranges.def = entry.start * parameter.ranges.max;
        if (entry.kind == kSwitch) label(parameter, {String("Off"), String("On")});
        if (entry.kind == kChoice) {
            std::vector<String> names;
            for (int i = 0; i < entry.count; ++i) {
                char text[16] = "Type A";
                text[5] += i;
                names.push_back(String(entry.labels ? entry.labels[i] : text));
            }
            label(parameter, names);
        }
    }

    void label(Parameter& parameter, const std::vector<String>& names) {
        auto& values = parameter.enumValues;
        values.count = names.size();
        values.restrictedMode = true;
        values.values = new ParameterEnumerationValue[names.size()];
        for (size_t i = 0; i < names.size(); ++i) {
            values.values[i].value = i;
            values.values[i].label = names[i];
        }
    }

    float getParameterValue(uint32_t index) const override {
        return raw_[index] * most(index);
    }

    void setParameterValue(uint32_t index, float value) override {
#ifdef DEAD_FROM
        if (index >= DEAD_FROM) return;
#endif
        raw_[index] = value / most(index);
    }

    // Deliberately empty: whoever starts and stops us clears nothing.
    void activate() override {}

    void run(const float**, float** outputs, uint32_t frames,
             const MidiEvent* events, uint32_t count) override {
        uint32_t next = 0;
        for (uint32_t i = 0; i < frames; ++i) {
#ifdef EVENT_GRID
            if (i % EVENT_GRID == 0)
#endif
            for (; next < count && events[next].frame <= i; ++next)
                handle(events[next]);
            const float sample = tick();
            // A little to one side: mono is the mean of two channels.
            outputs[0][i] = 1.2f * sample;
            outputs[1][i] = 0.8f * sample;
        }
    }

   private:
    static const int kEcho = 12000;

    static float most(uint32_t index) {
        const Entry& entry = PARAMETERS[index];
        const bool whole = entry.kind == kStepped || entry.kind == kChoice;
        return whole ? entry.count - 1 : 1;
    }

    void handle(const MidiEvent& event) {
        const int status = event.data[0] & 0xf0;
        if (status == 0x90 && event.data[2] > 0) {
            pitch_ = 440 * std::exp2((event.data[1] - 69) / 12.);
            loudness_ = event.data[2] / 127.;
            held_ = true;
            envelope_ = 0;
            rising_ = true;
            phase_[0] = phase_[1] = 0;
#ifdef STEADY
            slow_ = low_ = band_ = 0;
            cutoff_ = 0.7;
#endif
            start();
        } else if (status == 0x80 || status == 0x90) {
            held_ = false;
        } else if (status == 0xb0 && event.data[1] >= 120) {
            held_ = false;
        }
    }

    // Attack, decay and release take `seconds`, a curve towards `target`.
    void move(double target, double seconds) {
        const double rate = 1 - std::exp(-1 / (getSampleRate() * seconds));
        envelope_ += rate * (target - envelope_);
    }

    void amplify(double attack, double decay, double sustain, double release) {
        if (!held_) {
            move(0, 0.01 + release * release);
#ifdef STEADY
            if (envelope_ < 1e-4) envelope_ = 0;
#endif
        } else if (rising_) {
            move(1.2, 0.002 + 0.4 * attack * attack);
            rising_ = envelope_ < 1;
        } else {
            move(sustain, 0.02 + decay * decay);
        }
    }

    double slow(double hertz) {
#ifdef GLOBAL_STATE
        double& phase = shared_phase;
#else
        double& phase = slow_;
#endif
        phase = fraction(phase + hertz / getSampleRate());
        return std::sin(kTau * phase);
    }

#ifndef PARAMETER_TABLE
    enum {
        pBypass, pWave, pOctave, pLevel1, pHarmonic, pLevel2, pRing, pFilter,
        pCutoff, pResonance, pAttack, pDecay, pSustain, pRelease, pRate,
        pDepth, pNoise, pEcho, pMaster, pHazard, pFault, pPanic
    };

    int choice(int index) const {
        return std::lround(raw_[index] * most(index));
    }

    void start() {
        const double hazard = raw_[pHazard];
        broken_ = hazard >= 0.99;
        if (hazard >= 0.98 && !broken_)
            for (;;) usleep(1000);
        if (hazard >= 0.97 && !broken_) std::abort();
        if (choice(pFault) == 2) {
            char* memory = static_cast<char*>(std::malloc(16 << 20));
            std::memset(memory, 1, 16 << 20);
        }
        if (choice(pFault) == 3) slow_ = std::random_device()() / 4294967296.;
    }

    double wave(double phase) const {
        switch (choice(pWave)) {
            case 0: return std::sin(kTau * phase);
            case 1: return 1 - 4 * std::abs(phase - 0.5);
            case 2: return 2 * phase - 1;
            default: return phase < 0.5 ? 1 : -1;
        }
    }

    float tick() {
        const double rate = getSampleRate();
        const double lfo = slow(0.2 + 12 * raw_[pRate]);
        amplify(raw_[pAttack], raw_[pDecay], raw_[pSustain], raw_[pRelease]);
        const double bend = 1 + 0.03 * raw_[pDepth] * lfo;
        const double hertz = pitch_ * bend * std::exp2(choice(pOctave) - 1.);
        phase_[0] = fraction(phase_[0] + hertz / rate);
        phase_[1] = fraction(phase_[1] + hertz * (1 + choice(pHarmonic)) / rate);
        const double first = wave(phase_[0]);
        const double second = std::sin(kTau * phase_[1]);
        double sound = raw_[pLevel1] * first + raw_[pLevel2] * second;
        if (choice(pRing)) sound += first * second;
        sound += raw_[pNoise] * (std::rand() / (0.5 * RAND_MAX) - 1);

        // A state-variable filter; its cutoff glides.
        cutoff_ += 0.001 * (raw_[pCutoff] - cutoff_);
        const double tone = 60 * std::exp2(7 * cutoff_);
        const double f = 2 * std::sin(kTau / 2 * std::min(tone / rate, 0.12));
        low_ += f * band_;
        const double high = sound - low_ - (1.2 - raw_[pResonance]) * band_;
        band_ += f * high;
        const double filtered[] = {low_, band_, high};
        sound = filtered[choice(pFilter)] * envelope_ * loudness_;

        float& memory = echo_[place_];
        place_ = (place_ + 1) % kEcho;
        sound += memory;
        memory = 0.9 * raw_[pEcho] * sound;
#ifdef STEADY
        if (std::abs(memory) < 1e-4) memory = 0;
#endif
        if (broken_) return std::numeric_limits<float>::quiet_NaN();
        if (choice(pFault) == 1 || choice(pBypass)) return 0;
        return 0.6 * raw_[pMaster] * sound;
    }
#else
    void start() {
        // Each partial listens to every parameter, in its own way.
        double loudest = 0;
        for (int k = 0; k < kPartials; ++k) {
            double sum = 0;
            for (int i = 0; i < NUM_PARAMETERS; ++i)
                sum += raw_[i] * std::sin(1. + 7.3 * k + 3.1 * i);
            partial_[k] = std::exp(-0.15 * k + std::sin(sum));
            loudest += partial_[k];
        }
        for (double& partial : partial_) partial /= loudest;
    }

    float tick() {
        amplify(0.2, 0.5, 0.6, 0.4);
        const double bend = 1 + 0.002 * slow(3.7);
        phase_[0] += pitch_ * bend / getSampleRate();
        double sound = 0;
        for (int k = 0; k < kPartials; ++k)
            sound += partial_[k] * std::sin(kTau * fraction(phase_[0] * (k + 1)));
        return 0.8 * sound * envelope_ * loudness_;
    }

    static const int kPartials = 16;
    double partial_[kPartials] = {};
#endif

    double raw_[NUM_PARAMETERS];
    double pitch_ = 261.6, loudness_ = 0, envelope_ = 0;
    double phase_[2] = {}, slow_ = 0, cutoff_ = 0.7, low_ = 0, band_ = 0;
    bool held_ = false, rising_ = false, broken_ = false;
    std::vector<float> echo_;
    int place_ = 0;

    DISTRHO_DECLARE_NON_COPYABLE_WITH_LEAK_DETECTOR(Instrument)
};

Plugin* createPlugin() { return new Instrument(); }

END_NAMESPACE_DISTRHO
