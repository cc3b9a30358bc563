// What librmoe_command.so gives to main().
#include "rmoe/cli/command.h"

extern "C" int rmoe_main(int argc, char** argv);

int rmoe_main(int argc, char** argv) { return rmoe::cli::run_command_line({argv + (argc > 0 ? 1 : 0), argv + argc}); }
