# `make` lists the commands. Each sets up what it needs first (.setup/install.py), and does nothing when nothing is to do.

PYTHON ?= python3
venv := .venv/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup start engine train bench kernels check-day progress reset-day update doctor data lessons lint test test-all

# `make check-day 5` is `make check-day N=5`: the word after the command is its argument, not a target.
ifneq (,$(filter check-day reset-day lessons,$(firstword $(MAKECMDGOALS))))
  argument := $(wordlist 2,2,$(MAKECMDGOALS))
  ifneq (,$(argument))
    N := $(argument)
    .PHONY: $(argument)
    $(eval $(argument):;@:)
  endif
endif

# What a person types reaches the program as it stands: neither make nor the shell may expand a $ in it.
override PROMPT := $(value PROMPT)
override MODEL := $(value MODEL)
override N := $(value N)
override DATA := $(value DATA)
override BUDGET := $(value BUDGET)
export PROMPT MODEL N DATA BUDGET
ifdef PARTS
  export PARTS
endif

help:
	@echo "make …"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1 \2/p' $(firstword $(MAKEFILE_LIST)) | while read -r name text; do \
		printf '  %-10s %s\n' "$$name" "$$text"; done

setup: ## install what the course needs into .venv
	@$(PYTHON) .setup/install.py

start: setup ## open JupyterLab at the first unfinished day
	@$(venv)/python -m course_lib.classroom start

engine: setup ## chat; PROMPT= MODEL= SPECULATE= QUANTIZE= KV_CACHE_DTYPE= PARTS=
	@$(venv)/python -m course_lib.engine $(if $(PROMPT),--prompt "$$PROMPT") $(if $(MODEL),--model "$$MODEL") \
		$(if $(SPECULATE),--speculate "$$SPECULATE") $(if $(QUANTIZE),--quantize "$$QUANTIZE") \
		$(if $(KV_CACHE_DTYPE),--kv-cache-dtype "$$KV_CACHE_DTYPE") $(if $(COSTS),--costs)

train: setup ## train a model; BUDGET=2min|15min|full MODEL= DATA=folder NEW=1
	@$(venv)/python -m course_lib.train $(if $(BUDGET),--budget "$$BUDGET") $(if $(MODEL),--model "$$MODEL") \
		$(if $(DATA),--data "$$DATA") $(if $(NEW),--new)

bench: setup ## how fast the engine decodes here, beside Transformers
	@$(venv)/python -m course_lib.bench

kernels: setup ## run every kernel: error, bytes against the formula, time on a GPU
	@$(venv)/python -m course_lib.bench.kernels $(if $(ONLY),--only "$$ONLY")

check-day: setup ## grade a day: make check-day 5
	@$(venv)/python -m course_lib.classroom check-day "$$N"

progress: setup ## the thirty days at a glance
	@$(venv)/python -m course_lib.classroom progress

reset-day: setup ## put a day's lesson back as it came; keeps a copy
	@$(venv)/python -m course_lib.classroom reset-day "$$N"

update: setup ## get the newest version of the course around your work
	@$(venv)/python -m course_lib.classroom update

doctor: setup ## what works on this machine, and the mend for the rest
	@$(venv)/python -m course_lib.doctor

data: setup ## fetch every model and text now, to work offline later
	@$(venv)/python -m course_lib.assets

lessons: setup ## build the notebooks from solutions/*/lesson.md; N=5 for one day
	@$(venv)/python -m course_lib.classroom lessons $(if $(N),--day "$$N")

lint: setup ## check style, types and which room imports which
	@$(venv)/ruff check --quiet --output-format concise .
	@$(venv)/mypy --no-error-summary
	@$(venv)/lint-imports --no-cache > .course/imports.log || { cat .course/imports.log; exit 1; }

test: lint data ## the project's own tests, and a proof of the days that changed
	@$(venv)/pytest -n 2 --dist loadscope

test-all: lint data ## the same, with a proof of every day and of every mutant
	@PROVE=all $(venv)/pytest -n 2 --dist loadscope
	@$(venv)/python -m course_lib.classroom prove --all
