// Imports folders as `rmoe import` does, many in one process: import_folders OUT TOKENIZER FOLDER...
// For each a line of JSON: {"folder", "code", "message", "peak_bytes"}: 0 or what the command would end with, its line,
// and the process's largest memory so far.
#include <iostream>

#include "rmoe/base/error.h"
#include "rmoe/base/json.h"
#include "rmoe/base/process.h"
#include "rmoe/hf/commands.h"

int main(int argc, char** argv) {
  for (int i = 3; i < argc; ++i) {
    int code = 0;
    std::string message;
    try {
      rmoe::hf::import_folder({.folder = argv[i], .out = rmoe::str(argv[1], "/", i), .tokenizer = argv[2]});
    } catch (const rmoe::Error& error) {
      code = static_cast<int>(error.code());
      message = error.message();
    } catch (const std::exception& error) {
      code = 1;
      message = error.what();
    }
    const rmoe::Json line = {
        {"folder", argv[i]}, {"code", code}, {"message", message}, {"peak_bytes", rmoe::memory_peak_bytes()}};
    std::cout << rmoe::json_text(line) << std::endl;
  }
}
