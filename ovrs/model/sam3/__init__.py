"""SAM 3 and CoCo-SAM3 behind the same contract as the CLIP methods (`docs/sam3.md`)."""
