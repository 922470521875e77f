/* Empty: some OpenCSD kernels include it and use nothing of it. BPF has no floating point. */
