"""VST3 plug-ins, hosted in worker processes."""
