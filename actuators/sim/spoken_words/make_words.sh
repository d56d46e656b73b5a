#!/usr/bin/env bash
# Speaks the demo's four words in several voices and speeds with espeak-ng, as 16 kHz 16-bit mono wav beside this file.
# Needs the Debian packages espeak-ng and sox. The wavs are in the repository; run this only to change them.
set -euo pipefail
cd "$(dirname "$0")"
rm -f ./*.wav
for word in cat coffee rocket motorcycle; do
  for voice in en-us en-us+f3 en-gb-scotland en-gb-x-rp+m3 en-us+f4; do
    for speed in 140 175; do
      espeak-ng -v "$voice" -s "$speed" --stdout "$word" |
        sox -t wav - -r 16000 -b 16 -c 1 -R "$word.${voice//+/_}.$speed.wav" norm -6 \
          silence 1 0.01 1% reverse silence 1 0.01 1% reverse
    done
  done
done
