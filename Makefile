# The commands of this repository; `make` alone prints them. Each does the set-up it needs (scripts/setup.sh) by itself.
#   make demo DATA=book.txt      another text              make test JOBS=4       compilers and tests at once
#   RMOE_TORCH=/path make ...    another torch (>= 2.11)   make APT=no ...        take Debian's packages as installed
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
export APT JOBS

CTEST = ctest --output-on-failure --no-tests=error -j $${JOBS:-$$(nproc)}

# LLVM's OpenMP in place of GCC's, whose barriers ThreadSanitizer does not know; torch and its libraries have no
# instrumentation either, and would report what they rightly do.
LLVM = /usr/lib/llvm-19/lib
TSAN = LD_PRELOAD=$(LLVM)/libomp.so.5 OMP_TOOL_LIBRARIES=$(LLVM)/libarcher.so \
  TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1"

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: ## install what is missing: Debian packages, torch and the tests' Python packages into .venv
	@scripts/setup.sh

.PHONY: build
build: setup ## build/release: the command rmoe and the tests
	@scripts/build.sh release

.PHONY: demo
demo: setup ## train SMoE and RMoE on a real text, compare them: runs/demo/report.html (DATA=path: on your text)
	@scripts/build.sh release rmoe
	@scripts/demo.sh

.PHONY: test
test: build ## run all tests
	@$(CTEST) --test-dir build/release

.PHONY: test-fast
test-fast: build ## run the tests that take under a minute together
	@$(CTEST) --test-dir build/release -L fast

.PHONY: asan
asan: setup ## run the fast tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@scripts/build.sh asan
	@$(CTEST) --test-dir build/asan -L fast

.PHONY: tsan
tsan: ## run the fast tests under ThreadSanitizer
	@scripts/setup.sh build run test tsan
	@scripts/build.sh tsan
	@$(TSAN) $(CTEST) --test-dir build/tsan -L fast

.PHONY: check
check: ## what a change must pass: format, layering, clang-tidy on what changed, build, fast tests
	@scripts/check.sh

.PHONY: format
format: ## clang-format all sources in place
	@scripts/check.sh --fix-format

.PHONY: clean
clean: ## remove build/ (.venv and runs/ stay)
	rm -rf build
