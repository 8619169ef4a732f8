// What the plug-in framework wants to know before anything else.
#pragma once

#ifndef FIXTURE_NAME
#define FIXTURE_NAME "Proxy Fixture"
#endif
#ifndef FIXTURE_ID
#define FIXTURE_ID 'P', 'x', 'F', '1'
#endif

#define DISTRHO_PLUGIN_BRAND "Synth Proxy"
#define DISTRHO_PLUGIN_NAME FIXTURE_NAME
#define DISTRHO_PLUGIN_URI "urn:synth-proxy:fixture"
#define DISTRHO_PLUGIN_NUM_INPUTS 0
#define DISTRHO_PLUGIN_NUM_OUTPUTS 2
#define DISTRHO_PLUGIN_IS_SYNTH 1
#define DISTRHO_PLUGIN_HAS_UI 0
#define DISTRHO_PLUGIN_VST3_CATEGORIES "Instrument|Synth"
