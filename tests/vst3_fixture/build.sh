#!/usr/bin/env bash
# Builds the test instrument as a VST3 plug-in.
#
#     tests/vst3_fixture/build.sh FOLDER [NAME [g++ options ...]]
#
# makes FOLDER/NAME.vst3 and prints its path. Options: -DGLOBAL_STATE,
# -DDEAD_FROM=N, -DEVENT_GRID=N, -DSTEADY, -DSETUP_MS=N (see instrument.cpp),
# -DPARAMETER_TABLE='"FILE"' for a parameter list of its own (see table.h), and
# -DCURRENT_TEXTS for a plug-in that shows the text of its current value,
# whichever value it is asked about.
# It needs g++ and the DISTRHO Plugin Framework; DPF names its folder when it
# does not lie where Debian puts it.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
dpf=${DPF:-/usr/share/dpf}
if [ ! -f "$dpf/distrho/DistrhoPluginMain.cpp" ] || ! command -v g++ >/dev/null
then
  echo "the test plug-in needs g++ and the DISTRHO Plugin Framework: on Debian" \
    "or Ubuntu, apt-get install g++ dpf-source; elsewhere, clone" \
    "https://github.com/DISTRHO/DPF and set DPF to its folder" >&2
  exit 3
fi
[ $# -ge 1 ] || { echo "usage: $0 FOLDER [NAME [g++ options]]" >&2; exit 2; }
folder=$1 name=${2:-ProxyFixture}
shift $(($# < 2 ? $# : 2))
bundle="$folder/$name.vst3"
binaries="$bundle/Contents/$(uname -m)-linux"
mkdir -p "$binaries"
main="$dpf/distrho"
case " $* " in *" -DCURRENT_TEXTS "*)
  main="$folder/.$name.distrho.$$"
  trap 'rm -rf "$main"' EXIT
  cp -r "$dpf/distrho" "$main"
  shown='float value = fPlugin.getParameterValue(index);'
  sed -i "/v3_result getParameterStringForValue(/,/^    }/ {
    s/float value = .*;/$shown/
  }" "$main/src/DistrhoPluginVST3.cpp"
  grep -qF "$shown" "$main/src/DistrhoPluginVST3.cpp"
esac
g++ -std=gnu++17 -O2 -fPIC -shared -fvisibility=hidden -w \
  -DDISTRHO_PLUGIN_TARGET_VST3 "$@" -I"$here" -I"$dpf/distrho" \
  "$here/instrument.cpp" "$main/DistrhoPluginMain.cpp" \
  -o "$binaries/.$name.$$"
# Whole or not at all: others may be building the same one.
mv "$binaries/.$name.$$" "$binaries/$name.so"
echo "$bundle"
