# Fit RcppML::nmf for peers.py: arguments are a folder with a sparse matrix (genes x cells), its sizes, k, seed and threads.
library(Matrix)
args <- commandArgs(TRUE)
sizes <- as.integer(args[-1])
load <- function(name, what, n) readBin(file.path(args[1], name), what, n, size = if (name == "x") 8 else 4)
A <- new("dgCMatrix", i = load("i", "integer", sizes[3]), p = load("p", "integer", sizes[2] + 1),
         x = load("x", "double", sizes[3]), Dim = sizes[1:2])
RcppML::setRcppMLthreads(sizes[6])
memory <- function(name) {
  line <- grep(paste0("^", name, ":"), readLines("/proc/self/status"), value = TRUE)
  as.numeric(gsub("[^0-9]", "", line)) / 1024
}
invisible(gc())
writeLines("5", "/proc/self/clear_refs")  # reset the peak
before <- memory("VmRSS")
for (maxit in c(1, 2, 4, 8, 16, 32, 100)) {
  seconds <- system.time(fit <- RcppML::nmf(A, sizes[4], maxit = maxit, seed = sizes[5], verbose = FALSE))[["elapsed"]]
  found <- c(fit$iter, seconds, memory("VmHWM") - before, fit$w, fit$d, fit$h)
  writeBin(found, file.path(args[1], paste0(maxit, ".fit")), size = 8)
  if (fit$iter < maxit) break
}
