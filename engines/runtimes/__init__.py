"""Where the denoiser's evaluations run, behind one small interface (`runtime.Runtime`)."""
