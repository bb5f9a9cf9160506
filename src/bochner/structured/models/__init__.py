"""Models with parameters, trained by any optimiser: HMM, rank-space HMM, CRF."""
