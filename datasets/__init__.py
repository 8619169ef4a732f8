"""Everything that touches files, plug-ins, processes or the network."""
